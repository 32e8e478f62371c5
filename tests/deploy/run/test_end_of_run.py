"""What a run's end leaves where its diagnosis doesn't come to an end, with stand-ins for its parts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from common.config import RunConfig
from common.errors import RunFault
from common.tasks import make_task
from common.tasks.base import SampleRequest
from common.tokens import codec_of
from deploy.run import summary
from deploy.run.diagnosis import Subject
from deploy.run.kept_samples import SAMPLES
from deploy.run.launcher import Launcher
from deploy.run.summary import wanted_requests
from tests.deploy.run.runs import config_of


class Killed(BaseException):
    """What a process that is killed comes nearest to."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "learner_summary.json").write_text(json.dumps({"steps": 7}))
    (tmp_path / "evaluation_samples.json").write_text(json.dumps({"mean_log_reward": -3.5}))
    return tmp_path


def evaluate(folder: Path, diagnose: Callable[[Launcher, Subject], dict[str, Any]], *, final: bool = True) -> Launcher:
    """The end of a run whose diagnosis is this."""
    found: list[Launcher] = []
    given = {"task": {"name": "rng"}, "run": {"name": "mine"}, "diagnose": {"final": final}}
    launcher = Launcher(RunConfig.model_validate(given), diagnose=lambda subject: diagnose(found[0], subject))
    found.append(launcher)
    parts: Any = SimpleNamespace(
        request_stop=lambda reason: None, best_of=None, queries=lambda split: [], sample_requests=list
    )
    launcher.control = launcher.buffer = parts
    launcher._evaluate(parts, parts, folder)
    return launcher


def test_a_run_that_is_killed_in_its_diagnosis_has_its_summary(folder: Path) -> None:
    def diagnose(launcher: Launcher, subject: Subject) -> dict[str, Any]:
        raise Killed

    with pytest.raises(Killed):
        evaluate(folder, diagnose)
    written = json.loads((folder / "summary.json").read_text())
    assert (written["steps"], written["mean_log_reward"], written["fault"]) == (7, -3.5, None)
    assert "`amortis diagnose` makes one" in written["diagnosis"]


def test_a_plot_that_can_not_be_drawn_loses_no_figure(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def plot(*_: object) -> list[Path]:
        raise KeyError("probabilities")

    monkeypatch.setattr(summary, "make_task", lambda *_: SimpleNamespace(plot=plot))
    monkeypatch.setattr(summary, "codec_of", lambda _: None)
    (folder / "evaluation_after.json").write_text(json.dumps({"metrics": {"total_variation": 0.25}}))
    config = RunConfig.model_validate({"task": {"name": "rng"}, "run": {"name": "mine"}})
    written = summary.write_summary(config, folder, {}, 1.0, None, interrupted=False)
    assert json.loads((folder / "summary.json").read_text()) == written
    assert written["total_variation"] == 0.25 and written["plots"] == []


def test_no_diagnosis_is_spoken_of_where_none_is_made(folder: Path) -> None:
    def diagnose(launcher: Launcher, subject: Subject) -> dict[str, Any]:
        pytest.fail("none is wanted")

    evaluate(folder, diagnose, final=False)
    assert not (folder / "summary.json").exists(), "it is written at the end alone"


def test_a_finished_diagnosis_takes_the_place_of_what_was_said_before(folder: Path) -> None:
    assert evaluate(folder, lambda launcher, subject: {"verdict": "good"})._diagnosis == {"verdict": "good"}


def test_an_evaluation_that_fails_is_the_run_s_fault_and_loses_nothing(folder: Path) -> None:
    def evaluate_samples(*_: object) -> dict[str, Any]:
        raise ZeroDivisionError("no sample")

    launcher = Launcher(RunConfig.model_validate({"task": {"name": "rng"}, "run": {"name": "mine"}}))
    parts: Any = SimpleNamespace(
        request_stop=lambda reason: None,
        queries=lambda split: [],
        sample_requests=lambda: [SampleRequest("trained", adapter=True, temperature=1.0, n=1)],
        evaluate=lambda *_: {},
        evaluate_samples=evaluate_samples,
    )
    launcher.control = parts
    with pytest.raises(RunFault, match=r"\(ZeroDivisionError: no sample\); adapter and samples are kept in"):
        launcher._evaluate(parts, parts, folder)
    assert (folder / SAMPLES).is_file()


def test_an_interrupt_ends_the_diagnosis_at_its_next_look(folder: Path) -> None:
    def diagnose(launcher: Launcher, subject: Subject) -> dict[str, Any]:
        assert not subject.should_stop()
        subject.check_stop()
        launcher._interrupts = 1
        subject.check_stop()
        pytest.fail("it was to be given up")

    launcher = evaluate(folder, diagnose)
    assert launcher._diagnosis == {}
    launcher._summarise(folder, None, plots=False)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["interrupted"] is True and "diagnosis" not in summary


def test_what_is_known_is_scored_where_the_base_model_is_left_out(tmp_path: Path, digit_model: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"x": "7", "z": "1 2"}\n{"x": "6", "z": "3"}\n')
    fields = (
        f"train_path: {tmp_path / 'rows.jsonl'}, prompt: '{{x}} :', rationale: '{{z}}', allowed_characters: '[0-9]'"
    )
    config = config_of(tmp_path, digit_model, "--run.evaluate_base", "false", task=f"task: {{name: jsonl, {fields}}}")
    task = make_task(config.task, codec_of(config.model), 64)
    assert [request.label for request in wanted_requests(task, config)] == ["trained", "known"]
