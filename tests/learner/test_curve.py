"""Which adapters a learner wants evaluated, and where the figures go."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from buffer.adapters import AdapterError, AdapterRegistry
from buffer.connection import Keys
from buffer.evaluations import Drawn, Evaluations, Wanted
from buffer.replay import ReplayBuffer
from common.config import LearnerSection, RunConfig
from common.held_out import Part
from learner.curve import Curve, SampleTexts, Schedule
from learner.tracking import TensorBoard, as_markdown
from tests.conftest import make_query, make_trajectory

FILES = {"adapter_model.safetensors": b"weights"}


class Kept:
    """A tracker."""

    def __init__(self) -> None:
        self.evaluations: list[tuple[int, int, dict[str, float]]] = []
        self.samples: list[tuple[int, str, list[str]]] = []

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        raise AssertionError

    def write_evaluation(self, step: int, now: int, figures: Mapping[str, float]) -> None:
        self.evaluations.append((step, now, dict(figures)))

    def write_samples(self, step: int, title: str, samples: Sequence[Mapping[str, Any]]) -> None:
        self.samples.append((step, title, [row["text"] for row in samples]))

    def close(self) -> None:
        pass


@pytest.fixture
def evaluations(redis_client: Redis, keys: Keys) -> Evaluations:
    return Evaluations(redis_client, keys)


@pytest.fixture
def registry(redis_client: Redis, keys: Keys) -> AdapterRegistry:
    return AdapterRegistry(redis_client, keys, keep=2)


def config_in(folder: Path, every: int = 10, **sections: Any) -> RunConfig:
    settings = {"run": {"name": "mine", "folder": str(folder)}, "evaluation": {"every": every}, **sections}
    (folder / "mine").mkdir()
    return RunConfig.model_validate({"task": {"name": "rng"}, **settings})


BOTH = Part.EVALUATION | Part.DIAGNOSIS


def row(step: int, version: int, **figures: float) -> dict[str, Any]:
    named = {f"eval/{name}": value for name, value in figures.items()}
    head = {"time": 1.0, "step": step, "of": ["evaluation"], "adapter_version": version, "actor": "actor-0"}
    return {**head, **named}


@pytest.mark.parametrize(
    ("every", "published", "expected"),
    [
        (10, range(0, 41, 5), [0, 10, 20, 30, 40]),
        # Where no adapter is published at a multiple, the next one is taken.
        (10, range(0, 41, 4), [0, 12, 20, 32, 40]),
        (5, range(0, 41, 20), [0, 20, 40]),
        (0, range(0, 41, 5), []),
    ],
)
def test_the_first_adapter_at_or_after_each_multiple_is_wanted(
    every: int, published: Sequence[int], expected: list[int]
) -> None:
    schedule, found = Schedule(every), []
    for step in published:
        if schedule.is_due(step):
            schedule.done(step)
            found.append(step)
    assert found == expected


def test_a_resumed_run_does_not_evaluate_again_what_it_goes_on_from() -> None:
    schedule = Schedule(10)
    schedule.done(20)
    assert not schedule.is_due(20) and not schedule.is_due(25) and schedule.is_due(30)


def test_a_version_is_kept_until_it_is_evaluated_or_left_out(
    tmp_path: Path, evaluations: Evaluations, registry: AdapterRegistry
) -> None:
    curve = Curve(config_in(tmp_path), evaluations, registry, [])
    for version in range(1, 7):
        registry.publish(version, FILES)
        if version in (1, 3):
            curve.want(10 * version, version, {})
        if version == 1:
            evaluations.take("a")
    # An actor is at 1, and 3 waits.
    assert registry.fetch(1).version == 1 and registry.fetch(3).version == 3
    curve.want(60, 6, {})
    assert evaluations.skipped() == 1 and registry.fetch(1).version == 1
    with pytest.raises(AdapterError):
        registry.fetch(3)


def test_figures_are_written_by_the_step_that_they_are_of(
    tmp_path: Path, evaluations: Evaluations, registry: AdapterRegistry
) -> None:
    tracker = Kept()
    curve = Curve(config_in(tmp_path), evaluations, registry, [tracker])
    evaluations.put_figures(row(10, 2, accuracy=0.5))
    evaluations.put_figures(row(20, 4, accuracy=0.75))
    curve.write_down(27)
    curve.write_down(28)
    lines = [json.loads(line) for line in (tmp_path / "mine" / "metrics.jsonl").read_text().splitlines()]
    assert lines == [row(10, 2, accuracy=0.5), row(20, 4, accuracy=0.75)]
    assert tracker.evaluations == [(10, 27, {"eval/accuracy": 0.5}), (20, 27, {"eval/accuracy": 0.75})]


def answer_when_wanted(evaluations: Evaluations, found: list[Wanted]) -> None:
    while not (wanted := evaluations.wanted()):
        time.sleep(0.01)
    found.append(wanted)
    evaluations.put_figures(row(wanted.step, wanted.version, accuracy=1.0))


@pytest.mark.parametrize("asked_before", [False, True])
def test_the_curve_ends_with_the_last_adapter_for_which_nothing_is_bounded(
    tmp_path: Path, evaluations: Evaluations, registry: AdapterRegistry, asked_before: bool
) -> None:
    tracker, found = Kept(), list[Wanted]()
    curve = Curve(config_in(tmp_path), evaluations, registry, [tracker])
    if asked_before:
        curve.want(35, 8, {"total_variation": 0.5})
    else:
        curve.want(30, 7, {})
        evaluations.put_figures(row(30, 7, accuracy=0.5))
        evaluations.take("a")
        evaluations.finish("a", Drawn(Wanted(7, 30), "a" * 64, "actor-0", 0.05))
    thread = threading.Thread(target=lambda: time.sleep(0.3) or answer_when_wanted(evaluations, found))
    thread.start()
    curve.finish(35, 8, lambda: {"total_variation": 0.5}, lambda: True)
    thread.join()
    assert found == [Wanted(8, 35, {"total_variation": 0.5}, last=True)]
    assert tracker.evaluations[-1][0] == 35


def diagnosis(step: int, version: int, **figures: float) -> dict[str, Any]:
    named = {f"diagnose/{name}": value for name, value in figures.items()}
    return {**row(step, version), "of": ["diagnosis"], **named}


def test_evaluation_and_diagnosis_are_due_by_their_own_steps(
    tmp_path: Path, evaluations: Evaluations, registry: AdapterRegistry
) -> None:
    curve = Curve(config_in(tmp_path, 10, diagnose={"every": 15}), evaluations, registry, [])
    found = {}
    for step in range(0, 41, 5):
        parts = curve.due(step)
        if parts:
            curve.want(step, 1 + step // 5, {}, parts)
            found[step] = parts
    assert curve.due(45) == Part.DIAGNOSIS and not curve.due(44)
    both = dict.fromkeys((0, 30), BOTH)
    alone = dict.fromkeys((10, 20, 40), Part.EVALUATION) | {15: Part.DIAGNOSIS}
    assert found == {**both, **alone}


@pytest.mark.parametrize(("final", "expected"), [(True, Part.EVALUATION), (False, BOTH)])
def test_the_last_step_s_adapter_is_not_diagnosed_twice(
    tmp_path: Path, evaluations: Evaluations, registry: AdapterRegistry, final: bool, expected: Part
) -> None:
    sections = {"diagnose": {"every": 10, "final": final}, "learner": {"steps": 40}}
    curve = Curve(config_in(tmp_path, **sections), evaluations, registry, [])
    assert (curve.due(30), curve.due(40)) == (BOTH, expected)


@pytest.mark.parametrize(
    ("sections", "asked", "expected"),
    [
        # The diagnosis of the last adapter is that of the run's end, where there is one.
        ({}, Part(0), Part.EVALUATION),
        ({"diagnose": {"every": 20, "final": False}}, Part(0), BOTH),
        ({"diagnose": {"every": 20}, "run": {"evaluate_samples": False}}, Part(0), BOTH),
        ({"evaluation": {}}, Part(0), None),
        # One that was due at the last step is waited for, and so is what comes to it.
        ({}, Part.DIAGNOSIS, BOTH),
        ({"evaluation": {}}, Part.DIAGNOSIS, Part.DIAGNOSIS),
        ({"diagnose": {"every": 20, "final": False}}, Part.EVALUATION, BOTH),
    ],
)
def test_what_the_last_adapter_is_wanted_for(
    tmp_path: Path,
    evaluations: Evaluations,
    registry: AdapterRegistry,
    sections: dict[str, Any],
    asked: Part,
    expected: Part | None,
) -> None:
    run = {"name": "mine", "folder": str(tmp_path), **sections.get("run", {})}
    config = config_in(tmp_path, **{"diagnose": {"every": 20}, **sections, "run": run})
    curve, looks = Curve(config, evaluations, registry, []), 0
    if asked:
        curve.want(35, 8, {"total_variation": 0.5}, asked)

    def answers() -> bool:
        nonlocal looks
        looks += 1
        wanted = evaluations.wanted()
        assert wanted == Wanted(8, 35, {"total_variation": 0.5}, last=True, parts=expected or Part(0))
        evaluations.take("a")
        evaluations.finish("a", Drawn(wanted, "a" * 64, "actor-0", 0.05, (b"one",)))
        evaluations.put_figures({**row(35, 8), "of": [str(part.name).lower() for part in wanted.parts]})
        return True

    started = time.monotonic()
    curve.finish(35, 8, lambda: {"total_variation": 0.5}, answers)
    assert looks == (0 if expected is None else 1) and time.monotonic() - started < 5.0


def test_diagnoses_fulfil_the_rule_that_ends_training_and_are_tracked(
    tmp_path: Path, evaluations: Evaluations, registry: AdapterRegistry
) -> None:
    tracker = Kept()
    sections = {"diagnose": {"every": 20}, "learner": {"stop_when": "ess >= 0.5 for 2 diagnoses"}}
    curve = Curve(config_in(tmp_path, **sections), evaluations, registry, [tracker])
    evaluations.put_figures(diagnosis(20, 4, ess=0.6, log_z=-1.0))
    curve.write_down(27)
    assert curve.stop_reason is None and curve.stop_state == "ess >= 0.5 for 2 diagnoses: held 1 of 2"
    evaluations.put_figures(row(30, 6, accuracy=0.5))
    evaluations.put_figures(diagnosis(40, 8, ess=0.5))
    curve.write_down(43)
    assert curve.stop_reason is not None and "0.6 at step 20, 0.5 at step 40" in curve.stop_reason
    assert tracker.evaluations[0] == (20, 27, {"diagnose/ess": 0.6, "diagnose/log_z": -1.0})


def test_a_resumed_run_counts_on_from_the_lines_that_it_kept(
    tmp_path: Path, evaluations: Evaluations, registry: AdapterRegistry
) -> None:
    sections = {"diagnose": {"every": 20}, "learner": {"stop_when": "ess >= 0.5 for 2 diagnoses"}}
    curve = Curve(config_in(tmp_path, **sections), evaluations, registry, [])
    curve.go_on([{"step": 20, "loss": 1.0}, diagnosis(20, 4, ess=0.6)])
    assert Part.DIAGNOSIS not in curve.due(30) and curve.stop_reason is None
    evaluations.put_figures(diagnosis(40, 8, ess=0.7))
    curve.write_down(41)
    assert curve.stop_reason is not None


@pytest.mark.parametrize(("likelihood", "held"), [(0.0, 2), (2.0, 0)])
def test_what_a_sampler_of_another_reward_held_does_not_count_in_a_resumed_run(
    tmp_path: Path, evaluations: Evaluations, registry: AdapterRegistry, likelihood: float, held: int
) -> None:
    rule = "ess >= 0.5 for 3 diagnoses"
    learner = {"stop_when": rule, "reward": {"likelihood_weight": likelihood}}
    config = config_in(tmp_path, diagnose={"every": 10}, learner=learner)
    curve = Curve(config, evaluations, registry, [])
    of = config.model_copy(update={"learner": LearnerSection()}).final_reward
    assert of == [0.0, 0.0, 1.0]
    curve.go_on([{**diagnosis(step, step // 5, ess=0.9), "reward": of} for step in (10, 20)])
    assert curve.stop_state == f"{rule}: held {held} of 3"


def test_a_last_adapter_that_is_left_out_is_waited_for_by_nobody(
    tmp_path: Path, evaluations: Evaluations, registry: AdapterRegistry
) -> None:
    tracker = Kept()
    curve = Curve(config_in(tmp_path), evaluations, registry, [tracker])
    curve.want(35, 8, {})
    evaluations.put_figures({**row(35, 8), "left_out": "it is gone"})
    started = time.monotonic()
    curve.finish(35, 8, dict, lambda: True)
    assert time.monotonic() - started < 5.0 and tracker.evaluations == []
    assert json.loads((tmp_path / "mine" / "metrics.jsonl").read_text())["left_out"] == "it is gone"


def test_a_run_that_was_resumed_at_its_end_has_its_last_point_already(
    tmp_path: Path, evaluations: Evaluations, registry: AdapterRegistry
) -> None:
    curve = Curve(config_in(tmp_path), evaluations, registry, [])
    curve.go_on([{"step": 35, "loss": 1.0}, row(35, 7)])
    curve.finish(35, 8, dict, lambda: True)
    assert evaluations.wanted() is None


def test_a_look_that_was_under_way_at_a_stop_is_asked_for_again(
    tmp_path: Path, evaluations: Evaluations, registry: AdapterRegistry
) -> None:
    sections = {"evaluation": {"every": 50}, "diagnose": {"every": 50}}
    lines = [{"step": 50, "loss": 1.0}, diagnosis(0, 1, ess=0.1), row(0, 1), diagnosis(50, 6, ess=0.6)]
    curve = Curve(config_in(tmp_path, **sections), evaluations, registry, [])
    curve.go_on(lines)
    assert curve.due(50) == curve.due(55) == Part.EVALUATION
    curve.want(55, 8, {})
    assert not curve.due(60) and curve.due(100) == Part.EVALUATION | Part.DIAGNOSIS


def test_a_run_that_is_stopped_does_not_wait_for_its_last_evaluation(
    tmp_path: Path, evaluations: Evaluations, registry: AdapterRegistry
) -> None:
    curve = Curve(config_in(tmp_path), evaluations, registry, [])
    started = time.monotonic()
    curve.finish(35, 8, dict, lambda: False)
    assert time.monotonic() - started < 1.0


def test_trackers_get_the_newest_and_the_best_as_text_every_so_many_steps(
    tmp_path: Path, redis_client: Redis, keys: Keys
) -> None:
    config, query, tracker = config_in(tmp_path), make_query(1), Kept()
    buffer = ReplayBuffer.of(config, redis_client, keys)
    buffer.put_queries([query])
    buffer.push([make_trajectory(query, [i], log_reward=-abs(i - 3)) for i in range(8)])

    class Letters:
        def decode(self, ids: Sequence[int]) -> str:
            return "".join("abcdefgh"[i] for i in ids)

        decode_prompt = decode

    texts = SampleTexts(config, buffer, Letters(), [tracker])  # type: ignore[arg-type]
    for step in range(1, 25):
        texts.write(step)
    assert [(step, title) for step, title, _ in tracker.samples] == [
        (step, title) for step in (10, 20) for title in ("newest", "best")
    ]
    assert tracker.samples[0][2] == ["h", "g", "f", "e", "d"]
    assert tracker.samples[1][2][0] == "d" and sorted(tracker.samples[1][2]) == ["b", "c", "d", "e", "f"]


def test_tensorboard_shows_texts_and_evaluations_by_their_own_steps(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    sink = TensorBoard(tmp_path)
    sink.write(27, {"train/loss": 1.0})
    sink.write_evaluation(20, 27, {"eval/accuracy": 0.5})
    sink.write_samples(20, "best", [{"text": "a|b\n<b>c</b>", "log_r": -1.5}])
    sink.close()
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (point,) = events.Scalars("eval/accuracy")
    assert (point.step, point.value) == (20, 0.5)
    (text,) = events.Tensors("samples/best/text_summary")
    shown = text.tensor_proto.string_val[0].decode()
    assert shown == as_markdown([{"text": "a|b\n<b>c</b>", "log_r": -1.5}])


def test_what_a_model_wrote_is_no_markup_of_the_table() -> None:
    shown = as_markdown([{"text": "a | `b`\n*c* <img src=x> [d](e)", "log_r": -1.25}])
    head, line, only = shown.splitlines()
    assert (head, line) == ("| text | log_r |", "| --- | --- |")
    assert only.count("|") == 3 and "-1.250" in only
    assert not set("`*<>[]") & set(only)
