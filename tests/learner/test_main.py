"""The learner process' last moments: what it reports, and how long its metrics can be scraped."""

from __future__ import annotations

import contextlib
import json
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry
from redis import Redis

from buffer.adapters import AdapterRegistry
from buffer.connection import Keys
from buffer.control import DONE, STARTING, STOPPED, Control
from buffer.rate_limiter import RateLimiter
from buffer.replay import ReplayBuffer
from buffer.seed_queue import SeedQueue
from common.config import RunConfig
from common.errors import RunFault, SamplerGapFault, StallError
from common.metrics import LearnerMetrics
from common.seeds import SeedJob
from common.trajectory import Trajectory
from learner import __main__ as process
from learner.gap import Gap
from learner.trainer import LONGEST_START, Progress, Trainer
from tests.conftest import make_query, make_trajectory

ROOT = Path(__file__).parents[2]


def fail_with(
    fault: RunFault, redis_client: Redis, monkeypatch: pytest.MonkeyPatch, *, metrics: bool = True
) -> list[float]:
    """Run a learner whose training ends with a fault; the seconds that it stays after it has reported it."""
    config = RunConfig.model_validate(
        {"task": {"name": "rng"}, "run": {"name": "test"}, "metrics": {"enabled": metrics}}
    )
    control = Control(redis_client, Keys("test"))
    stayed: list[float] = []

    def train(*parts: object) -> None:
        raise fault

    def sleep(seconds: float) -> None:
        assert control.fault() == f"learner: {fault}", "the others need not wait"
        stayed.append(seconds)

    monkeypatch.setattr(process, "load_resolved", lambda path: config)
    monkeypatch.setattr(process, "connect", lambda section: redis_client)
    monkeypatch.setattr(process, "build_trainer", train)
    monkeypatch.setattr(process.time, "sleep", sleep)
    for name in ("set_up_logging", "LogStream"):
        monkeypatch.setattr(process, name, lambda *_, **__: Ignored())
    monkeypatch.setattr(process.signal, "signal", lambda *_: None)
    assert process.main(["folder"]) == 1
    assert control.fault() == f"learner: {fault}"
    return stayed


class Ignored:
    """Stands for the log stream."""

    def attach(self) -> None:
        """Nothing to send."""


def test_a_gap_that_stops_the_run_is_served_until_prometheus_has_seen_it(
    redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    (stayed_s,) = fail_with(SamplerGapFault("too far apart"), redis_client, monkeypatch)
    path = ROOT / "deploy" / "monitoring" / "prometheus" / "prometheus.yml"
    interval = yaml.safe_load(path.read_text(encoding="utf-8"))["global"]["scrape_interval"]
    assert stayed_s > 2 * float(interval.removesuffix("s"))


def test_other_faults_and_a_learner_without_metrics_end_at_once(
    redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fail_with(RunFault("not finite"), redis_client, monkeypatch) == []
    redis_client.flushall()
    assert fail_with(SamplerGapFault("too far apart"), redis_client, monkeypatch, metrics=False) == []


@pytest.mark.parametrize(("gap", "stops"), [(0.01, False), (0.011, True)])
def test_only_a_gap_above_the_limit_stops_the_run_and_the_gauge_has_it_then(gap: float, stops: bool) -> None:
    metrics = LearnerMetrics(CollectorRegistry())
    found = Gap(version=1, mean=gap, largest=gap, tokens=256)
    trainer = SimpleNamespace(
        progress=Progress(step=4),
        section=SimpleNamespace(sync_every=2, max_sampler_gap=0.01),
        gaps=SimpleNamespace(compare=lambda batch, queries: found),
        queries={},
        metrics=metrics,
    )
    with (
        pytest.raises(SamplerGapFault, match=r"differ by 0\.0110 ± 0\.0000 nats") if stops else contextlib.nullcontext()
    ):
        Trainer._check_gap(trainer, [])  # type: ignore[arg-type]
    assert metrics.sampler_gap._value.get() == gap


@pytest.mark.parametrize(("phase", "longer"), [("sampling", 1), (f"{STARTING}, compiling the model", LONGEST_START)])
def test_engines_that_start_are_waited_for_longer_than_samples(redis_client: Redis, phase: str, longer: int) -> None:
    trainer: Any = SimpleNamespace(
        buffer=SimpleNamespace(stats=lambda: None),
        metrics=LearnerMetrics(CollectorRegistry()),
        section=SimpleNamespace(max_wait_s=0.4),
        control=Control(redis_client, Keys("test")),
        _enough=lambda stats: False,
        _may_go_on=lambda: True,
        _why_waiting=lambda stats: "0 of 64",
        _report_phase=lambda phase: None,
    )
    trainer.control.heartbeat("actor-0", {"phase": phase})
    trainer._engines_start = lambda: Trainer._engines_start(trainer)
    started = time.monotonic()
    with pytest.raises(StallError, match=r"0 of 64") as stall:
        Trainer._wait_for_trajectories(trainer)
    assert 0.4 * longer - 0.05 <= told_s(stall.value) <= time.monotonic() - started + 0.05 < 0.4 * (longer + 1.5)


def told_s(stall: StallError) -> float:
    """How long it says that was waited."""
    found = re.match(r"learner waited ([\d.]+) s for trajectories: ", str(stall))
    assert found, stall
    return float(found[1])


def test_samples_are_waited_for_from_the_time_on_at_which_the_engines_are_up(redis_client: Redis) -> None:
    trainer, looks = a_learner_of_seeds(redis_client, 7, rejected=0), 0
    trainer._enough = lambda stats: False
    trainer._may_go_on = lambda: True
    trainer._report_phase = lambda phase: None

    def starts_for_seven_looks() -> bool:
        nonlocal looks
        looks += 1
        return looks <= 7

    trainer._engines_start = starts_for_seven_looks
    started = time.monotonic()
    with pytest.raises(StallError) as stall:
        trainer._wait_for_trajectories()
    # Looks are 0.1 s apart: the engines take longer than samples are waited for.
    assert 0.3 <= told_s(stall.value) <= time.monotonic() - started - 0.6


def a_learner_of_seeds(redis_client: Redis, seeds: int, rejected: int) -> Any:
    """An sft learner's wait, when an actor has scored some seeds and set others aside."""
    config = RunConfig.model_validate(
        {
            "task": {"name": "rng"},
            "learner": {"objective": "sft", "max_wait_s": 0.3},
            "buffer": {"min_size": seeds},
            "seeds": {"hint": "{prompt}4"},
        }
    )
    keys = Keys("test")
    buffer, queue = ReplayBuffer.of(config, redis_client, keys), SeedQueue(redis_client, keys)
    query = make_query()
    jobs = [SeedJob(query.id, action_ids=(3 + i,)) for i in range(seeds)]
    queue.put(jobs)
    queue.take("actor-0", seeds)
    for job in jobs[:rejected]:
        buffer.quarantine.add(b"", reason=f"task.reward unusable: NaN for {job.action_ids}", origin="actor-0")
    buffer.push([make_trajectory(query, [3 + i]) for i in range(rejected, seeds)], from_actor=False)
    trainer: Any = Trainer.__new__(Trainer)
    trainer.config, trainer.section, trainer.limiter = config, config.learner, RateLimiter.of(config)
    trainer.buffer, trainer.seeds, trainer.control = buffer, queue, Control(redis_client, keys)
    trainer.metrics = LearnerMetrics(CollectorRegistry())
    return trainer


@pytest.mark.parametrize(
    ("phases", "told"),
    [
        ([f"{STARTING}, compiling the model"], f"times, 1 of 1 actors {STARTING}, compiling the model"),
        (["sampling", STARTING], f"times, 1 actors alive, 1 of 2 actors {STARTING}"),
        (["sampling", "waiting for memory: full"], "times, 2 actors alive, waiting for memory: full"),
        ([], "times, 0 actors alive"),
    ],
)
def test_what_is_waited_for_tells_an_engine_that_starts_from_an_actor_that_is_dead(
    redis_client: Redis, phases: list[str], told: str
) -> None:
    trainer = a_learner_of_seeds(redis_client, 7, rejected=0)
    for index, phase in enumerate(phases):
        trainer.control.heartbeat(f"actor-{index}", {"phase": phase})
    assert trainer._why_waiting(trainer.buffer.stats()).endswith(told)


def test_seeds_that_were_set_aside_are_not_waited_for(redis_client: Redis) -> None:
    trainer = a_learner_of_seeds(redis_client, 7, rejected=1)
    with pytest.raises(StallError, match=r"6 of 7 first .*, 1 set aside, the last: task\.reward unusable: NaN for"):
        trainer._wait_for_trajectories()
    trainer.seeds.done("actor-0", trainer.seeds.take("actor-0", 7))
    assert trainer._wait_for_trajectories() < 0.3


def test_seeds_that_were_all_set_aside_end_the_run_at_once(redis_client: Redis) -> None:
    trainer = a_learner_of_seeds(redis_client, 2, rejected=2)
    trainer.seeds.done("actor-0", trainer.seeds.take("actor-0", 2))
    started = time.monotonic()
    with pytest.raises(RunFault, match=r"none of the seeds can be trained on: 2 set aside, the last: .* for \(4,\)"):
        trainer._wait_for_trajectories()
    assert time.monotonic() - started < 0.3


def test_a_batch_s_versions_are_those_of_this_run_s_adapters(redis_client: Redis) -> None:
    trainer = a_learner_of_seeds(redis_client, 2, rejected=2)
    trainer.registry, trainer.progress = AdapterRegistry(redis_client, Keys("test")), Progress(version=4)
    sha256s = {version: trainer.registry.publish(version, {"n.json": b"%d" % version}) for version in (2, 3, 4)}

    def of(version: int, sha256: str, source: str = "policy") -> Trajectory:
        item = make_trajectory(make_query(), [3], version=version, source=source)
        return item.model_copy(update={"behaviour": item.behaviour.model_copy(update={"adapter_sha256": sha256})})

    own = [of(2, sha256s[2]), of(4, sha256s[4], "tempered")]
    # Imported from another run, whose version 60 this one has not got to, and of a time without a record.
    others = [of(3, "f" * 64), of(60, "f" * 64), of(0, "0" * 64, "seed"), of(1, "e" * 64)]
    assert trainer._versions([*own, *others]) == [2, 4, 1]
    assert trainer._versions(others[:3]) == []


class Stopping:
    """A curve whose rule holds from a step on."""

    def __init__(self, reason_from: int | None) -> None:
        self.reason_from, self.trainer, self.finished = reason_from, Trainer.__new__(Trainer), list[tuple[int, int]]()

    @property
    def stop_reason(self) -> str | None:
        step, first = self.trainer.progress.step, self.reason_from
        return None if first is None or step < first else "learner.stop_when = 'ess > 0' is fulfilled"

    def due(self, step: int) -> bool:
        return False

    def finish(self, step: int, version: int, *_: object) -> None:
        self.finished.append((step, version))

    def write_down(self, step: int) -> None:
        """Nothing comes."""


@pytest.mark.parametrize(
    ("holds_from", "stop", "steps", "why"),
    [
        (7, None, 7, "learner.stop_when = 'ess > 0' is fulfilled"),
        # As of a resumed run whose lines fulfil it already.
        (0, None, 0, "learner.stop_when = 'ess > 0' is fulfilled"),
        (None, None, 20, None),
        (7, "interrupted", 3, "interrupted"),
    ],
)
def test_a_rule_that_holds_ends_training_in_the_order_of_its_last_step(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    holds_from: int | None,
    stop: str | None,
    steps: int,
    why: str | None,
) -> None:
    curve = Stopping(holds_from)
    trainer: Any = curve.trainer
    learner = {"steps": 20, "sync_every": 5}
    trainer.config = RunConfig.model_validate({"task": {"name": "rng"}, "learner": learner})
    trainer.section, trainer.folder = trainer.config.learner, tmp_path
    trainer.progress, trainer.curve = Progress(), curve
    trainer.policy = SimpleNamespace(save_adapter=lambda folder: done.append("adapter"))
    trainer.gaps, trainer.sinks = SimpleNamespace(means=[]), []
    trainer.stopped_because = trainer.satisfied_by = None
    trainer.control = SimpleNamespace(stop_reason=lambda: stop if trainer.progress.step >= 3 else None)
    done: list[str] = []

    def publish() -> None:
        trainer.progress.version += 1
        done.append("publish")

    def step() -> None:
        trainer.progress.step += 1

    for name in ("_report_phase", "_record_evaluation"):
        monkeypatch.setattr(trainer, name, lambda what: done.append(what))
    monkeypatch.setattr(trainer, "_one_step", step)
    monkeypatch.setattr(trainer, "_checkpoint", lambda: done.append("checkpoint"))
    monkeypatch.setattr(trainer, "publish", publish)
    trainer.run()
    summary = json.loads((tmp_path / "learner_summary.json").read_text())
    assert (summary["steps"], summary["stopped_because"]) == (steps, why)
    assert summary["trained_to_its_end"] is (stop is None)
    order = [what for what in done if what in ("publish", "checkpoint", "adapter", "after", DONE, STOPPED)]
    # The last version is of the last step, also where none was due there.
    assert order == [
        "publish",
        "checkpoint",
        "adapter",
        *["publish"] * (steps % 5 > 0),
        "after",
        STOPPED if stop else DONE,
    ]
    assert curve.finished == ([] if stop else [(steps, trainer.progress.version)])
