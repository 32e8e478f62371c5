"""How far a run is that takes long, in words."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from common.config import RunConfig
from common.devices import resolve_devices
from deploy.run import progress
from deploy.run.launcher import Launcher, RunState
from deploy.run.prompting import run_prompting
from deploy.run.train import in_lines


def test_it_is_said_now_and_then_and_not_of_every_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    now, said = [100.0], list[str]()
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    told = progress.of_samples(said.append, "trained")
    for done in range(1, 31):
        now[0] += 1.0
        told(done, 30)
    assert said == [f"samples (trained): {done} of 30" for done in (10, 20, 30)]


class Enough(Exception):
    pass


def test_a_run_without_training_says_how_many_samples_are_drawn(
    tmp_path: Path, digit_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def collect(queries: Any, request: Any, adapter: Any, limit: int, told: Any) -> Any:
        told(3, 8)
        raise Enough

    monkeypatch.setattr(progress, "SAY_EVERY_S", 0.0)
    monkeypatch.setattr("deploy.run.prompting.make_sampler", lambda *_: SimpleNamespace(collect=collect))
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"a": "1"}\n')
    task = {"name": "jsonl", "train_path": str(rows), "test_path": str(rows), "prompt": "number {a} :", "max_len": 1}
    given = {
        **{"task": task, "model": {"name": str(digit_model)}, "run": {"name": "base", "folder": str(tmp_path)}},
        **{"learner": {"objective": "prompting"}, "actor": {"max_model_len": 64}},
    }
    config, said = resolve_devices(RunConfig.model_validate(given)), list[str]()
    config.run_folder.mkdir()
    with pytest.raises(Enough):
        run_prompting(config, say=said.append)
    assert len(said) == 1 and said[0].startswith("samples (") and said[0].endswith("): 3 of 8")


def test_while_actors_draw_for_the_end_of_a_run_it_is_shown_how_far_they_are() -> None:
    shown: list[str | None] = []
    config = RunConfig.model_validate({"task": {"name": "rng"}, "run": {"name": "mine"}})
    launcher = Launcher(config, watch=lambda state: shown.append(state.drawn))
    words: list[Any] = [
        {"actor-0": {"drawn": None}, "actor-1": {"drawn": [7, 600]}},
        RedisConnectionError("it restarts"),
        {"actor-0": {"drawn": None}, "actor-1": {"drawn": None}},
    ]

    def actors() -> Any:
        word = words.pop(0)
        if isinstance(word, Exception):
            raise word
        return word

    launcher.control = SimpleNamespace(actors=actors)  # type: ignore[assignment]
    launcher.state.actors = {"actor-1": {"wait_share": 0.25}}
    assert not any(launcher._is_given_up() for _ in range(3))
    assert shown == ["7 of 600", "7 of 600", None]
    assert launcher.state.actors == {"actor-1": {"wait_share": 0.25}}, "the summary's bottleneck is training's"
    launcher.state.drawn = "600 of 600"
    launcher._show("stopping")
    assert shown[-1] is None, "of the phase before"
    launcher._interrupts = 1
    words.append({})
    assert launcher._is_given_up()


def test_python_says_it_in_its_lines_too() -> None:
    said: list[str] = []
    state = RunState(RunConfig.model_validate({"task": {"name": "rng"}, "run": {"name": "mine"}}))
    state.phase, state.drawn = "evaluating samples, 1 of 2 (trained)", "7 of 600"
    in_lines(said.append)(state)
    assert said[0].endswith("evaluating samples, 1 of 2 (trained), drawn 7 of 600")
