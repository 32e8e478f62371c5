"""The launcher's part of the diagnosis while it trains, against a real Redis but no actor."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from redis import Redis

from buffer.connection import Keys
from buffer.evaluations import Drawn, Wanted
from common.config import RewardSection, RunConfig
from common.diagnostics.verdict import Verdict
from common.held_out import Part
from common.metrics import LauncherMetrics, new_registry
from common.trajectory import Behaviour
from deploy.run.evaluation import Evaluator
from deploy.run.live_diagnosis import LiveDiagnoser, in_a_row
from tests.conftest import make_query, make_trajectory
from tests.deploy.run.test_evaluation import TEST, Spread, System

BOTH = Part.EVALUATION | Part.DIAGNOSIS
SAMPLES = 32
LOG_N = math.log(SAMPLES)
EVEN = [0.0] * SAMPLES
ONE_DECIDES = [0.0, *[-9.0] * (SAMPLES - 1)]
REFUSED, GOOD = Verdict.REFUSE, Verdict.GOOD


class Task(Spread):
    """With prompts that can be read."""

    codec = SimpleNamespace(decode_prompt=lambda ids: f"question {ids[0]}")


def rationales(query: int, log_rewards: Sequence[float]) -> tuple[bytes, ...]:
    """Each is another one, with q = 1 / SAMPLES."""
    behaviour = Behaviour(adapter_version=1, sampler_log_prob=np.array([-LOG_N, 0.0]), stop_log_prob=0.0)
    found = [make_trajectory(TEST[query], [3 + i % 9, 3 + i // 9], value) for i, value in enumerate(log_rewards)]
    return tuple(item.model_copy(update={"behaviour": behaviour}).to_bytes() for item in found)


class Run:
    """An evaluator of a run with `diagnose.every`."""

    def __init__(self, folder: Path, client: Redis, keys: Keys, **sections: Any) -> None:
        self.system = System(folder, client, keys)
        run = {"name": "mine", "folder": str(folder), **sections.pop("run", {})}
        diagnose = {"every": 10, "queries": 5, "samples": SAMPLES}
        settings = {"task": {"name": "rng"}, "run": run, "diagnose": diagnose, **sections}
        self.config, system = RunConfig.model_validate(settings), self.system
        parts = (system.evaluations, system.registry, system.control, system.metrics)
        self.evaluator = Evaluator(self.config, Task(), *parts)  # type: ignore[arg-type]
        with self.evaluator:
            pass

    def take_in(self, version: int, *diagnosis: Sequence[float], parts: Part = Part.DIAGNOSIS, **more: Any) -> Any:
        """The line of metrics.jsonl for a version, drawn from the first queries with these log R."""
        step = more.pop("step", 10 * version)
        sha256, wanted = self.system.publish(version), Wanted(version, step, {"exact": 0.5}, parts=parts)
        packed = tuple(item for i, values in enumerate(diagnosis) for item in rationales(i, values))
        self.evaluator.take_in(Drawn(wanted, sha256, "actor-0", 0.07, diagnosis=packed, **more))
        row = self.system.evaluations.next_figures()
        assert row is not None and self.system.evaluations.next_figures() is None
        return row

    def gauge(self, name: str, **labels: str) -> float | None:
        return self.system.prometheus.get_sample_value(f"amortis_{name}", labels)


@pytest.fixture
def run(tmp_path: Path, redis_client: Redis, keys: Keys) -> Run:
    return Run(tmp_path, redis_client, keys)


def test_figures_and_the_verdict_reach_the_learner_the_gauges_and_whoever_looks(run: Run) -> None:
    row = run.take_in(3, EVEN, ONE_DECIDES)
    assert (row["step"], row["of"], row["adapter_version"], row["evaluation_share"]) == (30, ["diagnosis"], 3, 0.07)
    assert (row["diagnosis_samples"], row["diagnosis_samples_missing"]) == (2 * SAMPLES, 0)
    assert (row["verdict"], row["worst_query"], row["narrow_queries"]) == (str(Verdict.CORRECT), TEST[1].id, 0)
    assert not any(name.startswith("eval/") for name in row) and "samples" not in row
    assert row["diagnose/ess"] == pytest.approx(1 / SAMPLES, rel=0.01)
    assert row["diagnose/ess_mean"] == pytest.approx(0.5 + 0.5 / SAMPLES, rel=0.01)
    assert run.gauge("diagnosis_figure", figure="ess") == row["diagnose/ess"] and run.gauge("diagnosis_step") == 30
    assert run.gauge("diagnoses", verdict=row["verdict"]) == 1 and run.gauge("diagnoses", verdict=str(GOOD)) == 0
    state = run.system.evaluations.state()
    assert state["last"] is None and state["best"] is None
    told = state["diagnosis"]
    assert (told["step"], told["version"], told["queries"], told["worst"]) == (30, 3, 2, "question 1")
    assert {f"diagnose/{name}": value for name, value in told["figures"].items()}.items() <= row.items()


def test_a_version_that_is_evaluated_and_diagnosed_has_one_line_and_both_are_shown(run: Run) -> None:
    item = make_trajectory(TEST[0], [3], log_reward=-2.0).to_bytes()
    row = run.take_in(1, EVEN, parts=BOTH, trajectories=(item,))
    assert row["of"] == ["evaluation", "diagnosis"] and row["samples"] == 1
    assert row["eval/score"] == -2.0 and row["eval/exact"] == 0.5 and row["diagnose/ess"] == pytest.approx(1.0)
    # A diagnosis alone leaves the evaluation as it was, and the other way round.
    run.take_in(2, ONE_DECIDES)
    state = run.system.evaluations.state()
    assert (state["last"]["step"], state["diagnosis"]["step"], state["done"]) == (10, 20, 1)
    run.take_in(3, parts=Part.EVALUATION, trajectories=(item,))
    state = run.system.evaluations.state()
    assert (state["last"]["step"], state["diagnosis"]["step"], state["done"]) == (30, 20, 2)


def test_a_log_z_below_that_of_the_untrained_adapter_is_refused_and_a_resumed_run_still_knows_it(run: Run) -> None:
    first = run.take_in(1, EVEN, step=0)
    assert first["verdict"] == str(GOOD) and LOG_N - 1.5 < first["diagnosis_log_z_low"][TEST[0].id] < LOG_N
    lower = [-2.0] * SAMPLES
    row = run.take_in(2, lower)
    assert (row["verdict"], row["hidden_queries"], row["diagnose/ess"]) == (str(REFUSED), 1, pytest.approx(1.0))
    (run.system.folder / "metrics.jsonl").write_text(json.dumps(first) + "\n")
    resumed = run.config.model_copy(update={"run": run.config.run.model_copy(update={"resume": True})})
    diagnoser = LiveDiagnoser(resumed, Task(), LauncherMetrics(new_registry()), 1.0)  # type: ignore[arg-type]
    diagnoser.know({query.id: query for query in TEST})
    drawn = Drawn(Wanted(4, 40, parts=Part.DIAGNOSIS), "a" * 64, "actor-0", 0.0, diagnosis=rationales(0, lower))
    assert diagnoser.look(drawn).row["verdict"] == str(REFUSED)
    # Of another reward, log Z is another.
    learner = resumed.learner.model_copy(update={"reward": RewardSection(likelihood_weight=2.0)})
    other = resumed.model_copy(update={"learner": learner})
    diagnoser = LiveDiagnoser(other, Task(), LauncherMetrics(new_registry()), 1.0)  # type: ignore[arg-type]
    diagnoser.know({query.id: query for query in TEST})
    assert diagnoser.look(drawn).row["verdict"] == str(GOOD)


def test_a_query_with_less_than_half_of_its_draws_is_left_out_and_the_others_are_diagnosed(run: Run) -> None:
    row = run.take_in(1, EVEN, ONE_DECIDES[: SAMPLES // 2 - 1], diagnosis_missing=17, reason="task.reward raised")
    assert (row["diagnosis_samples_missing"], row["worst_query"], row["verdict"]) == (17, TEST[0].id, str(REFUSED))
    assert run.system.evaluations.state()["diagnosis"]["queries"] == 1


@pytest.mark.parametrize(
    ("values", "more", "told"),
    [
        ([], {"diagnosis_missing": 64, "reason": "task.reward raised: \x1b"}, "task.reward raised: \\x1b"),
        (
            [EVEN[:3]],
            {"diagnosis_missing": 61, "reason": "task.reward raised"},
            "ValueError: no query has draws enough",
        ),
    ],
)
def test_what_can_not_be_diagnosed_is_left_out_and_ends_nothing(
    run: Run, values: list[list[float]], more: dict[str, Any], told: str
) -> None:
    run.take_in(1, EVEN)
    row = run.take_in(2, *values, **more)
    assert row["diagnosis_left_out"] == told and not any(name.startswith("diagnose/") for name in row)
    assert run.system.control.fault() is None and run.gauge("diagnosis_step") == 10
    # What was found last is still what is shown.
    assert run.system.evaluations.state()["diagnosis"]["step"] == 10


def test_diagnoses_in_a_row_that_are_not_to_be_trusted_are_counted_and_a_resumed_run_counts_on(
    run: Run, tmp_path: Path, redis_client: Redis, keys: Keys
) -> None:
    found, lines = [], []
    for version, values in enumerate([ONE_DECIDES, EVEN, ONE_DECIDES, ONE_DECIDES], 1):
        lines.append(json.dumps(run.take_in(version, values)))
        found.append(run.gauge("diagnoses_refused_in_a_row"))
    assert found == [1, 0, 1, 2]
    (run.system.folder / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 41, "loss": 1.0}', '{"st']))
    metrics = LauncherMetrics(registry := new_registry())
    LiveDiagnoser(run.config, Task(), metrics, 1.0)  # type: ignore[arg-type]
    assert registry.get_sample_value("amortis_diagnoses_refused_in_a_row") == 0, "another run of that name"
    resumed = run.config.model_copy(update={"run": run.config.run.model_copy(update={"resume": True})})
    diagnoser = LiveDiagnoser(resumed, Task(), metrics, 1.0)  # type: ignore[arg-type]
    assert registry.get_sample_value("amortis_diagnoses_refused_in_a_row") == 2
    # The same step once more, as after a checkpoint before it.
    diagnoser.know({query.id: query for query in TEST})
    again = Drawn(Wanted(4, 40, parts=Part.DIAGNOSIS), "a" * 64, "actor-0", 0.0, diagnosis=rationales(0, ONE_DECIDES))
    diagnoser.look(again)
    assert registry.get_sample_value("amortis_diagnoses_refused_in_a_row") == 2


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [([], 0), ([GOOD], 0), ([REFUSED] * 3, 3), ([REFUSED, GOOD, REFUSED], 1), ([REFUSED, REFUSED, GOOD], 0)],
)
def test_only_the_last_in_a_row_count(verdicts: list[Verdict], expected: int) -> None:
    assert in_a_row(verdicts, REFUSED) == expected


def test_weights_are_of_the_reward_as_it_is_trained_for(tmp_path: Path, redis_client: Redis, keys: Keys) -> None:
    """With the temperature that its schedule ends at, whatever it is now."""
    schedule = {"start": 1.0, "end": 2.0, "steps": 100}
    run = Run(tmp_path, redis_client, keys, learner={"reward": {"temperature": schedule}})
    row = run.take_in(1, [-6.0] * SAMPLES)
    assert row["diagnose/log_z"] == pytest.approx(-3.0 + LOG_N, abs=1e-6)


def test_actors_find_what_each_query_serves(run: Run) -> None:
    assert {parts for _, parts in run.system.evaluations.queries()} == {Part.DIAGNOSIS}
    assert [query.id for query, _ in run.system.evaluations.queries()] == [query.id for query in TEST]
    assert make_query(77).id not in {query.id for query in TEST}
