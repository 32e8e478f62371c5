"""What the commands show of a run's evaluations and of its buffer's trajectories, against a real Redis but no run."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from redis import Redis
from rich.console import Console

from buffer.connection import Keys
from buffer.control import STARTING, Control
from buffer.evaluations import Evaluations
from buffer.replay import ReplayBuffer
from common.config import BufferSection, RunConfig
from common.errors import EXIT_USER
from common.reward import RewardWeights
from common.trajectory import Query
from deploy.cli.display import state_line, state_table
from deploy.cli.main import main
from deploy.cli.status import Status, samples_table, status_table
from deploy.run.launcher import RunState
from tests.conftest import make_query, make_trajectory

STATE = {
    "last": {
        "step": 120,
        "version": 25,
        "metric": "accuracy",
        "figures": {"mean_log_reward": -7.25, "accuracy": 0.625, "diversity": 0.5, "max_log_reward": -3.0},
    },
    "best": {"step": 80, "version": 17, "metric": "accuracy", "mode": "max", "value": 0.75, "sha256": "a" * 64},
    "done": 6,
    "share": 0.08,
}


def shown(renderable: Any, width: int = 160) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(renderable)
    return out.getvalue()


def test_the_live_display_shows_the_last_evaluation_and_the_best_adapter() -> None:
    state = RunState(RunConfig.model_validate({"task": {"name": "rng"}, "run": {"name": "mine"}}))
    state.learner, state.evaluation = {"step": 130, "steps": 200}, {**STATE, "skipped": 2}
    for text in (shown(state_table(state)), state_line(state)):
        assert "accuracy 0.625, mean_log_reward -7.250, diversity 0.500 (step 120, 2 adapters left out)" in text
        assert "accuracy 0.750 (step 80, v17)" in text
    state.evaluation = {}
    assert "best adapter" not in shown(state_table(state)) and "evaluation" not in shown(state_table(state))


def test_status_shows_how_many_of_the_last_samples_a_living_actor_has_drawn(redis_client: Redis) -> None:
    config = RunConfig.model_validate({"task": {"name": "rng"}, "run": {"name": "mine"}})
    control, keys = Control(redis_client, Keys("mine")), Keys("mine")
    control.put_config(config)
    buffer = ReplayBuffer.of(config, redis_client, keys)
    buffer.open()
    control.heartbeat("actor-0", {"phase": "sampling", "host": "a", "drawn": None})
    control.heartbeat("actor-1", {"phase": "sampling", "host": "a", "drawn": [120, 1800]})

    def looked() -> Status:
        return Status.read("mine", config, control, buffer, Evaluations(redis_client, keys))

    assert looked().drawn == "120 of 1800" and "120 of 1800" in shown(status_table(looked()))
    control.heartbeat("actor-1", {"phase": "sampling", "host": "a", "drawn": None})
    assert looked().drawn is None and "drawn" not in shown(status_table(looked()))


def test_status_tells_an_actor_that_is_silent_while_its_engine_starts_from_a_dead_one(
    redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig.model_validate({"task": {"name": "rng"}, "run": {"name": "mine"}})
    control, keys = Control(redis_client, Keys("mine")), Keys("mine")
    control.put_config(config)
    buffer = ReplayBuffer.of(config, redis_client, keys)
    buffer.open()
    control.tell_actors_wanted(2)
    control.heartbeat("actor-0", {"phase": "sampling", "host": "a"})
    control.heartbeat("actor-1", {"phase": STARTING, "host": "a"})
    later = time.time() + 60
    monkeypatch.setattr(time, "time", lambda: later)
    text = shown(status_table(Status.read("mine", config, control, buffer, Evaluations(redis_client, keys))))
    dead, starting = (next(line for line in text.splitlines() if name in line) for name in ("actor-0", "actor-1"))
    assert "0/2, 1 starting" in text and " NO " in dead and "60 s ago" in starting


DIAGNOSIS = {
    "step": 125,
    "version": 26,
    "verdict": "usable with correction",
    "worst": "number [red]\x1b :",
    "remedy": "train longer",
    "queries": 4,
    "narrow": 0,
    "figures": {
        "ess": 0.42,
        "ess_mean": 0.6,
        "log_z": -3.25,
        "log_z_se": 0.0625,
        "elbo": -3.5,
        "length_bias": 0.25,
        "distinct_prefixes": 12.0,
    },
}


@pytest.mark.parametrize("evaluation", [STATE, {"last": None, "best": None}])
def test_the_live_display_shows_the_last_diagnosis_its_worst_query_and_how_far_the_rule_is(evaluation: Any) -> None:
    state = RunState(RunConfig.model_validate({"task": {"name": "rng"}, "run": {"name": "mine"}}))
    state.learner = {"step": 130, "steps": 200, "stop_when": "ess >= 0.5 for 3 diagnoses: held 1 of 3"}
    state.evaluation = {**evaluation, "diagnosis": DIAGNOSIS, "skipped": 0}
    for text in (shown(state_table(state), 200), state_line(state)):
        assert (
            "usable with correction, log Z -3.250 ± 0.062, ESS 42%, k̂ -, length bias +0.25, 12 prefixes (step 125)"
        ) in text
        assert r"number [red]\x1b :" in text and "held 1 of 3" in text
        assert ("accuracy 0.625" in text) is (evaluation is STATE)
    alone = {**DIAGNOSIS, "queries": 1, "narrow": 1}
    state.evaluation = {**evaluation, "diagnosis": alone, "skipped": 3}
    text = shown(state_table(state), 200)
    assert "12 prefixes, 1 of 1 queries with one rationale alone" in text
    assert "worst query" not in text and "(step 125, 3 adapters left out)" in text


@pytest.fixture
def run(redis_client: Redis, digit_model: Path) -> ReplayBuffer:
    """A run by its name in a given Redis, with nothing in its buffer."""
    settings = {"task": {"name": "rng"}, "run": {"name": "mine"}, "model": {"name": str(digit_model)}}
    config = RunConfig.model_validate(settings)
    Control(redis_client, Keys("mine")).put_config(config)
    return ReplayBuffer.of(config, redis_client, Keys("mine"))


def test_status_shows_the_evaluation_and_the_diagnosis(
    run: ReplayBuffer, redis_client: Redis, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    told = {**STATE, "diagnosis": DIAGNOSIS}
    Evaluations(redis_client, Keys("mine")).tell(told)
    Control(redis_client, Keys("mine")).report_learner({"step": 130, "stop_when": "ess > 0.5: held 0 of 1"})
    arguments = ["status", "mine", "--once", "--redis-url", redis_url]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "accuracy 0.625" in text and "accuracy 0.750 (step 80, v17)" in text
    assert "usable with correction" in text and "held 0 of 1" in text
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["evaluation"] == {**told, "skipped": 0} and found["stop_when"] == "ess > 0.5: held 0 of 1"


def test_the_newest_and_the_best_trajectories_are_shown_as_text(
    run: ReplayBuffer, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = make_query(14, 15), make_query(9)
    run.put_queries([first, second])
    # Tokens from 3 on are the digits from 0 on.
    for i in range(10):
        query = first if i % 2 else second
        run.push([make_trajectory(query, [3 + i], log_reward=-abs(i - 4.0), version=i)])
    arguments = ["status", "mine", "--samples", "3", "--redis-url", redis_url]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["text"].strip() for row in found["newest"]] == ["9", "8", "7"]
    assert [row["log_r"] for row in found["best"]] == [0.0, -1.0, -1.0]
    best = found["best"][0]
    assert (best["text"].strip(), best["adapter_version"], best["source"]) == ("4", 4, "policy")
    assert (best["log_constraint"], best["log_prior"], best["log_likelihood"]) == (0.0, 0.0, 0.0)
    assert best["prompt"].strip() == "6"
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "the newest in the buffer" in text and "the best in the buffer" in text and "policy" in text


def test_samples_of_an_empty_buffer_are_none_and_less_than_one_is_refused(
    run: ReplayBuffer, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["status", "mine", "--redis-url", redis_url, "--json", "--samples"]
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out) == {"newest": [], "best": []}
    assert main([*arguments, "0"]) == EXIT_USER
    assert "--samples = 0: shows nothing" in capsys.readouterr().err


def test_what_a_model_wrote_neither_moves_the_cursor_nor_is_taken_for_markup() -> None:
    row = {
        "prompt": "x" * 300 + "[bold]Q:",
        "text": "a\x1b[2J\r\n[red]b[/nothing]\u202e\x07",
        "log_r": -1.5,
        "log_prior": -1.0,
        "log_likelihood": -0.5,
        "log_constraint": 0.0,
        "adapter_version": 3,
        "source": "policy",
    }
    text = shown(samples_table("title", [row]), width=240)
    assert not {"\x1b", "\r", "\x07", "\u202e"} & set(text)
    assert r"[bold]Q: → a\x1b[2J\r\n[red]b[/nothing]\u202e\x07" in text
    assert "x" * 100 not in text and "-1.50" in text


@pytest.mark.parametrize("shards", [1, 4])
def test_newest_and_best_are_those_of_all_queries_and_shards(redis_client: Redis, keys: Keys, shards: int) -> None:
    weights = RewardWeights(prior=0, likelihood=0)
    buffer = ReplayBuffer(redis_client, keys, BufferSection(shards=shards), weights)
    queries: list[Query] = [make_query(i) for i in range(12)]
    rewards = np.random.default_rng(0).permutation(60)
    pushed = []
    for i, reward in enumerate(rewards):
        item = make_trajectory(queries[i % 12], [i], log_reward=float(reward))
        pushed.append(item.model_copy(update={"created_at": float(i)}))
        buffer.push(pushed[-1:])
    newest, best = buffer.top(7, "newest"), buffer.top(7, "best")
    assert [item.id for item in newest] == [item.id for item in reversed(pushed[-7:])]
    assert [float(item.log_constraint[-1]) for item in best] == list(range(59, 52, -1))
    assert buffer.top(100, "best")[-1].log_constraint[-1] == 0 and len(buffer.top(100, "newest")) == 60
