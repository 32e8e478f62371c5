"""The launcher's part of the evaluation while it trains, against a real Redis but no actor."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError

import deploy.run.evaluation
from buffer.adapters import AdapterError, AdapterRegistry
from buffer.connection import Keys
from buffer.control import Control
from buffer.evaluations import Drawn, Evaluations, Wanted
from common.adapter_files import files_sha256
from common.config import RunConfig
from common.metrics import LauncherMetrics, new_registry
from common.tasks import SampleRequest
from common.trajectory import Query
from deploy.run.best import load_best
from deploy.run.checks import prepare
from deploy.run.evaluation import Evaluator
from tests.conftest import make_query, make_trajectory
from tests.deploy.run.runs import config_of

TEST = [make_query(i) for i in range(5)]


class Spread:
    """A task whose figure is the mean log R, under a name of its own."""

    main_figures = ("score",)

    def __init__(self, wrong: bool = False) -> None:
        self._wrong = wrong

    def sample_requests(self) -> list[SampleRequest]:
        return [SampleRequest("trained", True, 1.0, 9)]

    def queries(self, split: str) -> list[Query]:
        return TEST if split == "test" else [make_query(77)]

    def evaluate_samples(self, samples: Any, weights: Any) -> dict[str, Any]:
        if self._wrong:
            raise ZeroDivisionError("no division by nothing")
        (only,) = (item for group in samples["trained"].values() for item in group)
        return {"score": float(only.log_constraint[-1])}


class System:
    """What an evaluator works with."""

    def __init__(self, folder: Path, client: Redis, keys: Keys) -> None:
        self.folder, self.registry = folder / "mine", AdapterRegistry(client, keys, keep=2)
        self.evaluations, self.control = Evaluations(client, keys), Control(client, keys)
        self.prometheus = new_registry()
        self.metrics = LauncherMetrics(self.prometheus)
        self.folder.mkdir(exist_ok=True)

    def evaluator(self, task: Any = None, learner: Any = None, **section: Any) -> Evaluator:
        run = {"name": "mine", "folder": str(self.folder.parent)}
        settings = {"task": {"name": "rng"}, "run": run, "evaluation": {"every": 10, "queries": 3, **section}}
        settings["learner"] = learner or {}
        config = RunConfig.model_validate(settings)
        task = task or Spread()
        return Evaluator(config, task, self.evaluations, self.registry, self.control, self.metrics)

    def publish(self, version: int) -> str:
        files = {"adapter_model.safetensors": f"weights {version}".encode(), "adapter_config.json": b"{}"}
        self.registry.pin(version)
        return self.registry.publish(version, files)

    def drawn(self, version: int, score: float, **exact: float) -> Drawn:
        """Of step 10 × version."""
        item = make_trajectory(TEST[0], [3], log_reward=score, version=version)
        sha256 = self.publish(version)
        return Drawn(Wanted(version, 10 * version, exact), sha256, "actor-0", 0.07, (item.to_bytes(),))


@pytest.fixture
def system(tmp_path: Path, redis_client: Redis, keys: Keys) -> System:
    return System(tmp_path, redis_client, keys)


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_figures_reach_the_learner_the_gauges_and_whoever_looks(system: System) -> None:
    evaluator = system.evaluator()
    evaluator.take_in(system.drawn(3, -2.0, total_variation=0.5))
    row = system.evaluations.next_figures()
    assert row is not None
    assert (row["step"], row["adapter_version"], row["samples"], row["evaluation_share"]) == (30, 3, 1, 0.07)
    figures = {"score": -2.0, "mean_log_reward": -2.0, "log_z_bound": -2.0, "total_variation": 0.5}
    assert {name: value for name, value in row.items() if name.startswith("eval/")} == {
        f"eval/{name}": value for name, value in figures.items()
    }

    def gauge(name: str, **labels: str) -> float | None:
        return system.prometheus.get_sample_value(f"amortis_evaluation_{name}", labels)

    assert gauge("figure", figure="score") == -2.0 and gauge("step") == 30
    assert gauge("best") == -2.0 and gauge("best_step") == 30
    state = system.evaluations.state()
    assert state["last"] == {"step": 30, "version": 3, "metric": "score", "figures": figures}
    assert state["best"]["version"] == 3 and state["done"] == 1 and state["skipped"] == 0


def test_the_best_adapter_is_the_one_that_was_published_under_its_version(system: System) -> None:
    evaluator = system.evaluator()
    for version, score in ((1, -3.0), (2, -1.0), (5, -2.0), (6, -1.0)):
        evaluator.take_in(system.drawn(version, score))
    best = load_best(system.folder)
    assert best is not None and (best.version, best.step, best.value) == (2, 20, -1.0)
    files = {path.name: path.read_bytes() for path in (system.folder / "adapter-best").iterdir()}
    assert json.loads(files.pop("evaluation.json"))["metric"] == "score"
    assert files["adapter_model.safetensors"] == b"weights 2" and files_sha256(files) == best.sha256
    with pytest.raises(AdapterError):
        # What was measured is pinned no longer.
        system.registry.fetch(2)


def test_a_resumed_run_keeps_the_best_of_before_unless_it_is_measured_by_another_figure(system: System) -> None:
    system.evaluator().take_in(system.drawn(1, -1.0))
    system.evaluator().take_in(system.drawn(2, -4.0))
    best = load_best(system.folder)
    assert best is not None and (best.version, best.metric) == (1, "score")
    system.evaluator(metric="mean_log_reward").take_in(system.drawn(3, -9.0))
    best = load_best(system.folder)
    assert best is not None and (best.version, best.metric) == (3, "mean_log_reward")
    system.evaluator(metric="mean_log_reward", mode="min").take_in(system.drawn(4, -5.0))
    best = load_best(system.folder)
    assert best is not None and (best.version, best.mode) == (4, "min")
    # Of another reward's posterior they are other figures.
    other = {"reward": {"temperature": {"start": 0.5, "end": 0.5}}}
    evaluator = system.evaluator(learner=other, metric="mean_log_reward", mode="min")
    evaluator.take_in(system.drawn(5, -2.0))
    best = load_best(system.folder)
    assert best is not None and (best.version, best.reward) == (5, [0.0, 0.0, 0.5])
    rows = iter(system.evaluations.next_figures, None)
    assert [row["reward"][2] for row in rows][-2:] == [1.0, 0.5]


def test_actors_find_some_of_the_held_out_queries_and_nothing_that_was_left_undone(system: System) -> None:
    system.publish(1)
    system.publish(2)
    system.publish(3)
    system.evaluations.want(Wanted(1, 10))
    with system.evaluator():
        assert [query.id for query, _ in system.evaluations.queries()] == [TEST[i].id for i in (0, 1, 3)]
        assert system.evaluations.take("a") is None
        with pytest.raises(AdapterError):
            system.registry.fetch(1)


def test_what_was_drawn_is_not_lost_with_redis(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    put, failures = system.evaluations.put_figures, [RedisConnectionError("it restarts"), OutOfMemoryError("full")]

    def fail_at_first(row: dict[str, Any]) -> None:
        if failures:
            raise failures.pop()
        put(row)

    monkeypatch.setattr(system.evaluations, "put_figures", fail_at_first)
    with system.evaluator():
        drawn = system.drawn(1, -1.0)
        system.evaluations.want(drawn.wanted)
        system.evaluations.take("a")
        system.evaluations.finish("a", drawn)
        wait_for(lambda: not failures)
        wait_for(lambda: (row := system.evaluations.next_figures()) and row["adapter_version"] == 1)
    best = load_best(system.folder)
    assert best is not None and best.version == 1 and system.control.fault() is None


WITHOUT_A_VALUE = "task.reward raised: ValueError: [/INST] busy"


@pytest.mark.parametrize("task", [Spread(), Spread(wrong=True)])
def test_a_version_without_a_single_sample_is_left_out_and_the_run_goes_on(system: System, task: Spread) -> None:
    with system.evaluator(task):
        drawn = replace(system.drawn(1, -1.0, total_variation=0.5), trajectories=(), missing=6, reason=WITHOUT_A_VALUE)
        system.evaluations.want(drawn.wanted)
        system.evaluations.take("a")
        system.evaluations.finish("a", drawn)
        found: list[dict[str, Any]] = []
        wait_for(lambda: (row := system.evaluations.next_figures()) and not found.append(row))
    assert system.control.fault() is None and load_best(system.folder) is None
    (row,) = found
    assert (row["adapter_version"], row["samples"], row["samples_missing"]) == (1, 0, 6)
    assert row["left_out"] == WITHOUT_A_VALUE
    # The learner's own figures need no samples.
    assert {name: value for name, value in row.items() if name.startswith("eval/")} == {"eval/total_variation": 0.5}
    assert system.evaluations.skipped() == 1
    system.publish(2)
    system.publish(3)
    with pytest.raises(AdapterError):
        system.registry.fetch(1)


def test_figures_of_some_samples_say_how_many_are_missing_and_need_not_be_possible(system: System) -> None:
    system.evaluator().take_in(replace(system.drawn(1, -1.0), missing=5, reason=WITHOUT_A_VALUE))
    row = system.evaluations.next_figures()
    assert row is not None and (row["samples"], row["samples_missing"], row["eval/score"]) == (1, 5, -1.0)
    assert "left_out" not in row and system.evaluations.skipped() == 0
    # A figure that can't be made of what there is, or a metric that isn't among those that can.
    system.evaluator(Spread(wrong=True)).take_in(replace(system.drawn(2, -1.0), missing=5))
    row = system.evaluations.next_figures()
    assert row is not None and row["left_out"].startswith("ZeroDivisionError") and system.evaluations.skipped() == 1
    system.evaluator(metric="pairs").take_in(replace(system.drawn(3, -1.0), missing=5))
    row = system.evaluations.next_figures()
    assert row is not None and row["eval/score"] == -1.0
    best = load_best(system.folder)
    assert best is not None and best.version == 1


def test_an_adapter_that_was_lost_is_not_the_best_and_no_fault(system: System) -> None:
    evaluator = system.evaluator()
    drawn = system.drawn(1, -1.0)
    for version in (2, 3, 4):
        system.publish(version)
    system.registry.unpin_up_to(4)
    evaluator.take_in(drawn)
    assert load_best(system.folder) is None and system.evaluations.next_figures() is not None
    evaluator.take_in(system.drawn(5, -9.0))
    best = load_best(system.folder)
    assert best is not None and best.version == 5


def test_a_best_adapter_that_can_not_be_kept_ends_nothing_and_a_later_one_is_kept(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator = system.evaluator()
    evaluator.take_in(system.drawn(1, -3.0))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(deploy.run.evaluation, "keep_best", full)
        evaluator.take_in(system.drawn(2, -1.0))
    for version in (1, 2):
        row = system.evaluations.next_figures()
        assert row is not None and row["adapter_version"] == version
    # What is said of the best is what is there.
    assert system.evaluations.state()["best"]["version"] == 1
    evaluator.take_in(system.drawn(3, -2.0))
    best = load_best(system.folder)
    assert best is not None and best.version == 3


def test_it_works_beside_the_launcher_until_it_is_closed(system: System) -> None:
    with system.evaluator() as evaluator:
        drawn = system.drawn(1, -1.0)
        system.evaluations.want(drawn.wanted)
        system.evaluations.take("a")
        system.evaluations.finish("a", drawn)
        wait_for(lambda: system.evaluations.state())
        evaluator.close()
    assert system.control.fault() is None


def test_the_picture_of_the_curve_grows_while_the_run_trains(system: System) -> None:
    picture, seen = system.folder / "curve.png", set[bytes]()

    def written_down() -> bool:
        """As the learner does it."""
        row = system.evaluations.next_figures()
        with (system.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n" if row else "")
        return row is not None

    with system.evaluator() as evaluator:
        for version in (1, 2, 3):
            system.evaluations.want((drawn := system.drawn(version, -float(version))).wanted)
            system.evaluations.take("a")
            system.evaluations.finish("a", drawn)
            wait_for(written_down)
            wait_for(lambda: picture.exists() and picture.read_bytes() not in seen)
            seen.add(picture.read_bytes())
        evaluator.close()
    assert len(seen) == 3 and all(image.startswith(b"\x89PNG") for image in seen)
    assert system.control.fault() is None


@pytest.mark.parametrize(
    ("task", "section", "expected"),
    [
        (Spread(), {"metric": "scor"}, "evaluation: evaluation.metric = 'scor': is no figure"),
        (
            Spread(),
            {"learner": {"stop_when": "eval/scor > 1"}},
            "evaluation: learner.stop_when = 'eval/scor > 1': eval/scor is no figure of this evaluation; choose one of",
        ),
        (Spread(wrong=True), {}, "ZeroDivisionError: no division by nothing; see logs/launcher.log"),
    ],
)
def test_what_makes_every_evaluation_fail_stops_the_run_at_the_first(
    system: System, task: Spread, section: dict[str, Any], expected: str
) -> None:
    with system.evaluator(task, **section):
        drawn = system.drawn(1, -1.0)
        system.evaluations.want(drawn.wanted)
        system.evaluations.take("a")
        system.evaluations.finish("a", drawn)
        wait_for(lambda: system.control.fault())
    assert expected in str(system.control.fault())


TEXT = "task: {{name: jsonl, train_path: '{0}/rows.jsonl', prompt: '{{x}}', max_len: 4, allowed_characters: '[0-9 ]'}}"


@pytest.mark.parametrize(
    ("rows", "task", "note"),
    [
        (12, TEXT, None),
        # Too few to hold any out.
        (3, TEXT, "3 of the 3 queries that evaluation.every looks at are trained on as well"),
        (0, "task: {{name: rng}}", "1 of the 1 queries that evaluation.every looks at are trained on as well"),
    ],
)
def test_queries_that_are_trained_on_as_well_are_said_before_anything_starts(
    tmp_path: Path, digit_model: Path, rows: int, task: str, note: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = "".join(json.dumps({"x": f"number {i // 10} {i % 10} :"}) + "\n" for i in range(rows))
    (tmp_path / "rows.jsonl").write_text(lines)
    prepare(config_of(tmp_path, digit_model, "--evaluation.every", "5", task=task.format(tmp_path)))
    said = [line for line in capsys.readouterr().err.splitlines() if "evaluation.every" in line]
    assert said == ([] if note is None else [f"amortis: {note}"])
    prepare(config_of(tmp_path, digit_model, task=task.format(tmp_path)))
    assert "evaluation.every" not in capsys.readouterr().err
