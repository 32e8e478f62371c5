"""A run on one node: Redis, Ray actors, the learner process, and their orderly end.

The launcher holds no arithmetic. It starts the parts, watches that they live, and collects what they leave.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from redis.exceptions import RedisError

from buffer.adapters import AdapterRegistry
from buffer.connection import Client, Keys, Memory, connect, forget, memory_of
from buffer.control import Control
from buffer.embedded import EmbeddedRedis
from buffer.evaluations import Evaluations
from buffer.log_stream import LogStream
from buffer.replay import ReplayBuffer
from buffer.seed_queue import SeedQueue
from buffer.stats import BufferStats
from common.balance import bottleneck, hand_over
from common.config import RunConfig
from common.config_loading import REDIS_URL_VARIABLE
from common.errors import RunFault, UserError
from common.evaluation import measures, spread
from common.files import write_whole
from common.folder_lock import LEARNER, locked
from common.json_text import dumps
from common.log import get_logger, set_up_logging
from common.metrics import LauncherMetrics, new_registry, serve, targets
from common.processes import die_with_parent
from common.seeds import make_seed_jobs
from common.tasks import SampleRequest, Split, Task, make_task
from common.tasks.base import SampleSets, check_trained, missing_samples, with_samples
from common.tokens import codec_of
from common.trajectory import Trajectory
from deploy.run.actor_pool import ActorPool, EvaluationStopped
from deploy.run.cluster import joined, own_gpus
from deploy.run.diagnosis import UNFINISHED, Diagnose, Subject, diagnosed, is_wanted, of_adapter
from deploy.run.evaluation import Evaluator
from deploy.run.identity import keep_identity
from deploy.run.kept_samples import SAMPLES, keep_samples
from deploy.run.progress import of_actors
from deploy.run.put_aside import begun
from deploy.run.summary import tokens_per_sample, wanted_requests, write_summary

log = get_logger("launcher")
POLL_S = 0.5
DRAWN = "samples.jsonl"
"""Samples of the training queries that a run was asked for, in its folder."""
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
SAME_WISH_S = 0.5
"""Signals that come one after the other within this are one."""
STOP_LIMIT_S = 120.0
"""Longest time that the learner gets to finish its step, checkpoint and evaluate after a stop was asked for."""


@dataclass
class RunState:
    """What a display shows."""

    config: RunConfig
    started: float = field(default_factory=time.monotonic)
    phase: str = "starting"
    learner: dict[str, Any] = field(default_factory=dict)
    actors: dict[str, dict[str, Any]] = field(default_factory=dict)
    actors_wanted: int = 1
    evaluation: dict[str, Any] = field(default_factory=dict)
    """The last evaluation and diagnosis while it trains, and the best adapter."""
    buffer_size: int = 0
    pushed: int = 0
    quarantined: int = 0
    tokens: int = 0
    """That actors sampled, or read to score."""
    drawn: str | None = None
    """How far the samples are that an actor draws once training is done."""


Watcher = Callable[[RunState], None]


class Launcher:
    """One run, from its resolved configuration to its summary."""

    def __init__(
        self,
        config: RunConfig,
        watch: Watcher = lambda state: None,
        draw: int = 0,
        diagnose: Diagnose | None = None,
    ) -> None:
        """`draw` asks for so many samples of each training query at the end, kept in the run's folder as seeds;
        `diagnose` makes the diagnosis that the run ends with."""
        self.config, self._watch, self._draw, self._diagnose = config, watch, draw, diagnose
        self._diagnosis: dict[str, Any] = {}
        self.state = RunState(config)
        self._interrupts = 0
        self._interrupted_at: float | None = None
        self._stopped: str | None = None
        self._own_redis: EmbeddedRedis | None = None

    def run(self) -> dict[str, Any]:
        """Run to the end; the summary. Raises RunFault or UserError after everything was stopped and saved.

        The run's folder is its own by now, and empty unless it is resumed.
        """
        folder = self.config.run_folder
        folder.mkdir(parents=True, exist_ok=True)
        set_up_logging(folder / "logs" / "launcher.log", terminal=False, run=self.config.run.name, process="launcher")
        with begun(self.config):
            return self._run(folder)

    def _run(self, folder: Path) -> dict[str, Any]:
        with self._signals(), ExitStack() as stack:
            try:
                fault = self._run_parts(stack, folder)
            except RedisError as error:
                fault = f"Redis was lost: {error}; the last checkpoint is kept, go on with --run.resume true"
            except RunFault as error:
                fault = str(error)
        summary = self._summarise(folder, fault)
        if fault is not None:
            raise RunFault(fault)
        return summary

    def _summarise(self, folder: Path, fault: str | None, *, plots: bool = True) -> dict[str, Any]:
        wall_s = time.monotonic() - self.state.started
        interrupted = self._interrupts > 0 or self._stopped is not None
        slow = bottleneck(self.state.learner, self.state.actors.values(), self.config)
        found = {
            "trajectories_pushed": self.state.pushed,
            "trajectories_set_aside": self.state.quarantined,
            "tokens_of_actors": self.state.tokens,
            **({} if slow is None else {"bottleneck": slow}),
            **hand_over(self.state.actors.values()),
            **self._diagnosis,
        }
        return write_summary(self.config, folder, found, wall_s, fault, interrupted=interrupted, plots=plots)

    def _run_parts(self, stack: ExitStack, folder: Path) -> str | None:
        """Start everything, wait for the learner, evaluate, stop everything; what went wrong, or None."""
        url = self._start_redis(stack, folder)
        client, keys = connect(self.config.redis, url), Keys(self.config.redis_name)
        self._client = client
        stack.callback(self._leave_small, AdapterRegistry(client, keys))
        LogStream(client, keys).attach()
        self.control = Control(client, keys)
        self.buffer = ReplayBuffer.of(self.config, client, keys)
        if not self.config.run.resume:
            forget(client, keys)
        self.control.reset()
        self.control.put_config(self.config)
        self.buffer.open()
        codec, limit = codec_of(self.config.model), self.config.actor.max_model_len
        task = make_task(self.config.task, codec, limit, self.config.final_temperature)
        keep_identity(self.config, task)
        self.buffer.put_queries([*task.queries("train")])
        seeds = SeedQueue(client, keys)
        # A Redis that knows nothing of a resumed run has lost its seeds too.
        if not seeds.was_filled:
            seeds.put(make_seed_jobs(self.config.seeds, task))
        self._serve_metrics(url)
        evaluator = self._evaluator(stack, task, client, keys)
        stack.callback(self._tell_ended)
        self._show("starting Ray")
        stack.enter_context(joined(self.config))
        # Ray puts a handler of its own in place, which would end this process at once.
        self._catch_signals()
        # Not beside Ray, whose many processes the actors wait for: the learner has time until they have sampled.
        learner = stack.enter_context(self._learner(folder, url))
        self._show("starting actors")
        actors = stack.enter_context(ActorPool(self.config, url, self.control))
        try:
            self._watch_training(learner, actors)
            fault = self.control.fault()
            if fault is None and learner.returncode:
                fault = f"the learner ended with status {learner.returncode}; see {folder}/logs/learner.err"
            self._stopped = self.control.stop_reason() if fault is None else None
            if evaluator is not None:
                evaluator.close()
            if fault is None and self._stopped is None:
                self._evaluate(task, actors, folder)
        finally:
            self._show("stopping")
            with contextlib.suppress(RedisError):
                self.control.request_stop("the run is over")
                # Actors that were evaluated have told all by now; what they drew for that they don't tell.
                self.state.tokens = self.control.tokens()
        return fault

    def _evaluator(self, stack: ExitStack, task: Task[Any], client: Client, keys: Keys) -> Evaluator | None:
        """What makes figures while it trains, where that is asked for."""
        self.evaluations = Evaluations(client, keys)
        if not self.config.looks:
            return None
        registry = AdapterRegistry(client, keys)
        return stack.enter_context(
            Evaluator(self.config, task, self.evaluations, registry, self.control, self._metrics)
        )

    def _tell_ended(self) -> None:
        with contextlib.suppress(RedisError):
            self.control.tell_ended()

    def _start_redis(self, stack: ExitStack, folder: Path) -> str:
        if self.config.redis.url is not None:
            return self.config.redis.url.get_secret_value()
        self._show("starting Redis")
        self._own_redis = EmbeddedRedis(folder / "redis", appendfsync=self.config.redis.appendfsync)
        return stack.enter_context(self._own_redis).url

    def _leave_small(self, registry: AdapterRegistry) -> None:
        """Drop the versions that were kept for actors, which can take a hundred times what trajectories take."""
        with contextlib.suppress(RedisError):
            registry.drop_older()
        if self._own_redis is not None:
            self._own_redis.compact()

    def _serve_metrics(self, url: str) -> None:
        registry = new_registry()
        self._metrics = LauncherMetrics(registry)
        self._metrics.buffer_max_bytes.set(self.config.buffer.max_bytes)
        # A resumed run's counts must not be served as 0 first: that would look like growth.
        self._export(self.buffer.stats(), memory_of(self._client))
        name = self.config.run.name or ""
        address = serve(registry, self.config.metrics, 0, url, lambda: targets(name, self.control.processes()))
        self.control.register("launcher", "launcher", address)
        log.info("metrics on %s, all processes on %s/targets", address, address)

    @contextlib.contextmanager
    def _learner(self, folder: Path, url: str) -> Iterator[subprocess.Popen[bytes]]:
        environment = {**os.environ, REDIS_URL_VARIABLE: url, "TOKENIZERS_PARALLELISM": "false"}
        gpus = own_gpus(self.config)
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        busy = UserError("RUN", str(folder), "has a learner at work", "wait for its end")
        with (
            (folder / "logs" / "learner.err").open("ab") as errors,
            # The learner alone has it then, and keeps another run out if it outlives this process by a step.
            locked(folder, LEARNER, busy) as lock,
        ):
            process = subprocess.Popen(
                [sys.executable, "-m", "learner", str(folder)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                pass_fds=(lock,),
                # Ctrl-C is for the launcher, which then asks the learner to finish.
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    # After a stop that was asked for, `_watch_training` has waited already.
                    process.wait(1.0 if self._interrupts else STOP_LIMIT_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def _watch_training(self, learner: subprocess.Popen[bytes], actors: ActorPool) -> None:
        """Look at everything until the learner is done, a stop was asked for, or something failed."""
        stop_deadline: float | None = None
        while learner.poll() is None:
            time.sleep(POLL_S)
            self._look(actors)
            problem = actors.look_after(self.state.actors)
            if problem is not None:
                self.control.report_fault("actors", problem)
            if self._interrupts and stop_deadline is None:
                self.control.request_stop("interrupted")
                stop_deadline = time.monotonic() + STOP_LIMIT_S
            overdue = stop_deadline is not None and time.monotonic() > stop_deadline
            if overdue or self._interrupts > 1:
                return

    def _look(self, actors: ActorPool) -> None:
        """Read the run's state from Redis, show it, and export it."""
        try:
            stats, memory = self.buffer.stats(), memory_of(self._client)
            self.state.learner, self.state.actors = self.control.learner(), self.control.actors()
            actors.follow(self.control.wanted_actors())
            if self.config.looks:
                self.state.evaluation = self.evaluations.state()
        except RedisError as error:
            # Redis may restart; the next look finds it again.
            log.warning("Redis can't be read: %s", error)
            return
        self.state.buffer_size, self.state.pushed = stats.size, stats.pushed
        self.state.quarantined = stats.quarantined
        self.state.actors_wanted = actors.wanted
        self._export(stats, memory)
        self._metrics.actors_wanted.set(actors.wanted)
        self._metrics.actors_alive.set(sum(actor["alive"] for actor in self.state.actors.values()))
        self._show(str(self.state.learner.get("phase", self.state.phase)))

    def _export(self, stats: BufferStats, memory: Memory) -> None:
        metrics = self._metrics
        metrics.buffer_size.set(stats.size)
        metrics.buffer_bytes.set(stats.bytes)
        metrics.redis_bytes.set(memory.used)
        metrics.redis_max_bytes.set(memory.limit)
        metrics.buffer_seeded.set(stats.seeded)
        metrics.buffer_near_duplicates.set(stats.near_duplicates)
        metrics.buffer_expired.set(stats.expired)
        metrics.buffer_refused.set(stats.refused)
        metrics.buffer_pushed.set(stats.pushed)
        metrics.buffer_duplicates.set(stats.duplicates)
        metrics.buffer_evicted.set(stats.evicted)
        metrics.buffer_quarantined.set(stats.quarantined)

    def _show(self, phase: str) -> None:
        if phase != self.state.phase:
            log.info("%s", phase)
            self.state.drawn = None
        self.state.phase = phase
        self._watch(self.state)

    def _evaluate(self, task: Task[Any], actors: ActorPool, folder: Path) -> None:
        """Draw what the task's evaluation needs with the actors' engines, and keep the figures."""
        requests = wanted_requests(task, self.config)
        self.control.request_stop("training is done")
        try:
            if self._draw:
                self._keep_drawn(actors, folder)
            if requests:
                found = self._sampled(task, requests, actors, folder)
                write_whole(folder / "evaluation_samples.json", dumps(found, indent=2))
            if self._diagnose is not None and is_wanted(self.config):
                self._diagnosis = dict(UNFINISHED)
                self._summarise(folder, None, plots=False)
            self._diagnosis = diagnosed(self.config, self._diagnose, lambda: self._subject(task, actors, folder))
        except EvaluationStopped:
            self._diagnosis = {}
            log.info("the evaluation was given up")

    def _sampled(
        self, task: Task[Any], requests: Sequence[SampleRequest], actors: ActorPool, folder: Path
    ) -> dict[str, Any]:
        """The task's figures of what is drawn of the test queries and, of the trained sampler's on training queries,
        those of `run.evaluate_training`; the samples are kept as they come."""
        most = self.config.run.evaluate_training
        drawn: dict[Split, SampleSets] = {"test": self._drawn("evaluating samples", requests, actors)}
        keep_samples(folder / SAMPLES, self.config, task, drawn)
        found = self._figures(task, drawn["test"])
        found |= missing_samples(requests, drawn["test"])
        found |= tokens_per_sample(drawn["test"], task.queries("test"))
        if most:
            trained = [request for request in requests if request.adapter]
            drawn["train"] = self._drawn("evaluating on training queries", trained, actors, most, "train")
            keep_samples(folder / SAMPLES, self.config, task, drawn)
            if with_samples(drawn["train"]):
                found["training"] = measures(self._figures(task, drawn["train"]))
        return found

    def _figures(self, task: Task[Any], drawn: SampleSets) -> dict[str, Any]:
        """The task's of what was drawn; raises RunFault if they can't be made, as all else is kept."""
        try:
            return task.evaluate_samples(check_trained(drawn), self.config.reward_weights)
        except Exception as error:
            log.exception("no figures of what was drawn")
            said = str(error) if isinstance(error, UserError | RunFault) else f"{type(error).__name__}: {error}"
            place = self.config.run_folder
            raise RunFault(
                f"the evaluation can't be made of what was drawn ({said}); adapter and samples are kept in {place}, "
                "go on with --run.resume true"
            ) from error

    def _drawn(
        self,
        phase: str,
        requests: Sequence[SampleRequest],
        actors: ActorPool,
        most: int | None = None,
        split: Split = "test",
    ) -> dict[str, dict[str, list[Trajectory]]]:
        """Samples of the test queries, or of `most` of them, one request after the other to tell how far it is: beam
        search alone can take minutes."""
        samples: dict[str, dict[str, list[Trajectory]]] = {}
        for number, request in enumerate(requests, start=1):
            self._show(f"{phase}, {number} of {len(requests)} ({request.label})")
            samples |= _decoded(actors.evaluate([request], split, self._is_given_up, most))
        return samples

    def _subject(self, task: Task[Any], actors: ActorPool, folder: Path) -> Subject:
        """What the run ends with, to be diagnosed by an actor's draws."""
        most = self.config.diagnose.queries

        def collect(requests: Sequence[SampleRequest]) -> dict[str, dict[str, list[Trajectory]]]:
            samples = self._drawn("diagnosing", requests, actors, most)
            self._show("diagnosing what was drawn")
            return samples

        queries = spread(task.queries("test"), most)
        return of_adapter(folder, self.config, task, queries, collect, self.buffer.best_of, self._is_interrupted)

    def _keep_drawn(self, actors: ActorPool, folder: Path) -> None:
        """Distinct rationales of the training queries from the trained sampler, as a file of seeds."""
        self._show("drawing samples")
        request = SampleRequest("drawn", adapter=True, temperature=1.0, n=self._draw)
        groups = _decoded(actors.evaluate([request], "train", self._is_given_up))[request.label]
        drawn = [item for group in groups.values() for item in group]
        distinct = dict.fromkeys((item.query_id, tuple(item.action_ids.tolist())) for item in drawn)
        lines = [json.dumps({"query_id": key, "rationale_ids": list(ids)}) for key, ids in distinct]
        write_whole(folder / DRAWN, "".join(f"{line}\n" for line in lines))

    def _is_given_up(self) -> bool:
        """Asked now and then while actors draw; shows how far they are."""
        # Redis may restart; what is drawn needs none.
        with contextlib.suppress(RedisError):
            # What else they say is of training no more.
            self.state.drawn = of_actors(self.control.actors().values())
        self._show(self.state.phase)
        return self._is_interrupted()

    def _is_interrupted(self) -> bool:
        return self._interrupts > 0

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM stop in good order; a second one doesn't wait for the learner."""

        before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
        self._catch_signals()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _catch_signals(self) -> None:
        def on_signal(number: int, frame: FrameType | None) -> None:
            # `timeout` and others signal the process and then its group, which is one wish.
            now, before = time.monotonic(), self._interrupted_at
            self._interrupted_at = now
            if before is None or now - before > SAME_WISH_S:
                self._interrupts += 1

        for number in STOP_SIGNALS:
            signal.signal(number, on_signal)


def _decoded(encoded: Mapping[str, Mapping[str, Sequence[bytes]]]) -> dict[str, dict[str, list[Trajectory]]]:
    """Samples as an actor hands them over, by label and query id."""
    return {
        label: {query: [Trajectory.from_bytes(item) for item in group] for query, group in groups.items()}
        for label, groups in encoded.items()
    }
