"""An actor's loop: follow the newest adapter, keep the engine fed, push what is scored, say how it goes.

Nothing here knows of Ray; `actors/ray_actor.py` makes a Ray actor of it.
"""

from __future__ import annotations

import contextlib
import os
import platform
import random
import time
from collections.abc import Sequence

from redis.exceptions import RedisError

from actors.adapters import AdapterFollower
from actors.held_out import HeldOutSampler
from actors.make_sampler import make_sampler
from actors.scoring import Scored, ScoreText
from buffer.adapters import AdapterRegistry
from buffer.connection import Keys, connect
from buffer.control import FULL, STARTING, STOPPED, Control
from buffer.evaluations import Evaluations
from buffer.log_stream import LogStream
from buffer.rate_limiter import RateLimiter
from buffer.replay import BufferFull, ReplayBuffer
from buffer.seed_queue import SeedQueue
from common.balance import HAND_OVERS, WAIT_SHARE
from common.config import FORWARD_LOOKING, RunConfig
from common.devices import available_cores
from common.errors import EngineFault, RunFault
from common.evaluation import spread
from common.log import get_logger, set_up_logging
from common.metrics import ActorMetrics, new_registry, serve
from common.tasks import SampleRequest, Split, make_task
from common.tokens import codec_of
from common.trajectory import Query, Source, Trajectory

log = get_logger("actor")
HOUSEKEEPING_S = 0.25
IDLE_S = 0.02
METRICS_OFFSET = 2
SEED_JOBS_AT_ONCE = 16
FULL_S = 1.0
"""Between attempts to push into a Redis that has no memory left."""


class Actor:
    """Samples, scores and pushes until the run stops."""

    def __init__(self, config: RunConfig, index: int, redis_url: str, generation: int = 0) -> None:
        """Start the engine. `generation` counts restarts, so that a restarted actor doesn't repeat its samples."""
        assert config.model.name is not None and config.run.name is not None
        self.config, self.section = config, config.actor
        self.id = f"actor-{index}"
        set_up_logging(
            config.run_folder / "logs" / f"{self.id}.log", terminal=False, run=config.run.name, process=self.id
        )
        seed = (config.run.seed * 1_009 + index * 101 + generation + 1) % 2**31
        self._random = random.Random(seed)
        client, keys = connect(config.redis, redis_url), Keys(config.redis_name)
        LogStream(client, keys).attach()
        self.control = Control(client, keys)
        self.buffer = ReplayBuffer.of(config, client, keys)
        self._seeds = SeedQueue(client, keys)
        self.task = make_task(config.task, codec_of(config.model), config.actor.max_model_len)
        self.queries = list(self.buffer.queries().values())
        registry = new_registry()
        self.metrics = ActorMetrics(registry)
        # It may be on another node than those whose ports a start has looked at, and is no reason to end a run.
        self.metrics_address = serve(registry, config.metrics, METRICS_OFFSET + index, redis_url, or_free=True)
        self.control.register(self.id, "actor", self.metrics_address)
        log.info("metrics on %s", self.metrics_address)
        self._blocked_s = 0.0
        self._first_adapter_at: float | None = None
        self._over_at: float | None = None
        """When its loop ended."""
        self._drawn: tuple[int, int] | None = None
        """Of an evaluation's samples, how many are done, and how many there are."""
        self._beat(STARTING)
        self.sampler = make_sampler(
            config,
            self.task,
            seed,
            metrics=self.metrics,
            actor_id=self.id,
            on_compiling=lambda: self._beat(f"{STARTING}, compiling the model: a minute or two the first time"),
            on_rejected=self._set_aside,
        )
        self.engine = self.sampler.policy
        first = self.queries[0]
        probe = ScoreText((*first.prompt_ids.tolist(), self.task.action_space.terminator_id), first=1)
        registry_of_adapters = AdapterRegistry(client, keys)
        self.adapters = AdapterFollower(self.engine, registry_of_adapters, probe, self.metrics, self.section.dtype)
        self._held_out: HeldOutSampler | None = None
        if config.looks:
            self._held_out = HeldOutSampler(config, Evaluations(client, keys), self.adapters, self.sampler)
        self._limiter = RateLimiter.of(config)
        self._ready: list[Trajectory] = []
        self._pushed = self._tokens_told = 0
        self._next_housekeeping = self._last_push = self._next_word = 0.0
        self._blocked_since: float | None = None
        self._order: list[Query] = []
        # On a cluster the learner's cores are elsewhere, and those beside an actor are others'.
        self._evaluation_threads = 0 if config.ray.address else max(1, available_cores() // self.section.least_count)
        self._beat("waiting for an adapter")

    def run(self) -> None:
        """Loop until the run stops; a fault is reported and ends it, but for the engine's: another actor may go on."""
        log.info("running with %d queries", len(self.queries))
        try:
            while self._may_go_on():
                if not self._score_seeds():
                    self._round()
            self._push()
            if self._held_out is not None:
                self._held_out.give_back()
            self._count_tokens()
            self._over_at = time.monotonic()
            self._beat(STOPPED)
        except EngineFault:
            log.exception("the engine failed")
            raise
        except RunFault as fault:
            self.control.report_fault(self.id, str(fault))
            raise
        except Exception:
            log.exception("the actor's loop failed")
            raise

    def _may_go_on(self) -> bool:
        return self.control.stop_reason(self.id) is None

    def _round(self) -> None:
        """Work until the next housekeeping is due."""
        self.sampler.check_own_reward()
        self._housekeep()
        deadline = time.monotonic() + HOUSEKEEPING_S
        while time.monotonic() < deadline:
            if self._held_out is not None:
                self._held_out.feed()
            if self._may_sample():
                self._feed()
            if not self.sampler.in_flight:
                time.sleep(IDLE_S)
                continue
            self._ready += self._step()
            self._push_if_due()

    def _step(self) -> list[Trajectory]:
        if self._held_out is None:
            return self.sampler.step()
        with self._held_out.timed():
            return self.sampler.step()

    def _housekeep(self) -> None:
        version = self.adapters.is_behind()
        if version is not None:
            self._load(version)
        self._push_if_due()
        if self._held_out is not None and not self.engine.is_letting_go:
            self._held_out.housekeep()
        self._follow_back_pressure()
        self._count_tokens()
        self._beat(self._phase())

    def _phase(self) -> str:
        if self._held_out is not None and self._held_out.training_is_over:
            return "evaluating the last adapter"
        return "waiting for the learner" if self._blocked_since is not None else "sampling"

    def _count_tokens(self) -> None:
        told, self._tokens_told = self._tokens_told, self.sampler.tokens
        self.control.count_tokens(self._tokens_told - told)

    def _load(self, version: int) -> None:
        while not self.engine.can_load:
            self._ready += self._step()
            self._say_that_it_loads()
        self.adapters.update(version)
        if self.adapters.current is None or self.adapters.current.version != version:
            return
        # Requests in flight share the probe's steps; what they finish with is kept.
        for request_id, text, adapter in self.adapters.probe_texts():
            self.engine.submit_score(request_id, text, adapter)
        results: list[Scored] = []
        while len(results) < 2:
            self._say_that_it_loads()
            for result in self.engine.step():
                if result.request_id.startswith("probe-"):
                    assert isinstance(result, Scored)
                    results.append(result)
                else:
                    self._ready += self.sampler.accept([result])
        self.adapters.check_probe(results)

    def _say_that_it_loads(self) -> None:
        """What is in flight may take longer than an actor may be silent."""
        if time.monotonic() < self._next_word:
            return
        self._next_word = time.monotonic() + HOUSEKEEPING_S
        self.sampler.check_own_reward()
        self._push()
        self._keep_evaluation()
        self._beat("finishing samples of an older adapter")

    def _keep_evaluation(self) -> None:
        if self._held_out is not None:
            self._held_out.renew()

    def _score_seeds(self) -> bool:
        """Score some of the seeds that wait, and push them; whether there were any. No adapter is needed for it.

        Most are there at the start. Later ones are those that an actor had taken which is gone: what is in flight then
        is finished beside them.
        """
        jobs = self._seeds.take(self.id, SEED_JOBS_AT_ONCE)
        if not jobs:
            return False
        queries = {query.id: query for query in self.queries}
        for job in jobs:
            self.sampler.submit_seed(queries[job.query_id], job, every_state=self._every_state)
        scored = self._seeds_among(self.sampler.accept([]))
        next_word = 0.0
        while self.sampler.in_flight:
            scored += self._seeds_among(self._step())
            if time.monotonic() >= next_word:
                next_word = time.monotonic() + HOUSEKEEPING_S
                self.sampler.check_own_reward()
                self._push()
                self._keep_evaluation()
                self._beat("scoring seeds")
                if self.control.stop_reason() is not None:
                    # The jobs stay this actor's, for a resumed run.
                    return True
        if self._push_or_wait(scored, from_actor=False):
            self._seeds.done(self.id, jobs)
        return True

    def _seeds_among(self, done: Sequence[Trajectory]) -> list[Trajectory]:
        """Those of seeds; the others are ready to be pushed as this actor's own."""
        self._ready += [item for item in done if item.source != "seed"]
        return [item for item in done if item.source == "seed"]

    @property
    def _every_state(self) -> bool:
        # The other objectives look at the last state alone, which takes a fraction of the scoring.
        return self.config.learner.objective in FORWARD_LOOKING

    def _may_sample(self) -> bool:
        # sft trains on the seeds alone.
        wanted = self.config.learner.objective != "sft"
        if self._held_out is not None and self._held_out.training_is_over:
            return False
        return wanted and self.adapters.current is not None and self._blocked_since is None

    def _follow_back_pressure(self) -> None:
        """Wait while far more was pushed than the learner used, so that samples aren't stale when they are."""
        stats = self.buffer.stats()
        now = time.monotonic()
        if self._blocked_since is not None:
            self.metrics.blocked.inc(now - self._blocked_since)
            self._blocked_s += now - self._blocked_since
        if self._first_adapter_at is None and self.adapters.current is not None:
            # What it waited while it scored seeds is no part of the share.
            self._first_adapter_at, self._blocked_s = now, 0.0
        may_go_on = self._limiter.may_insert(size=stats.size, inserted=stats.pushed, sampled=stats.trained)
        self._blocked_since = None if may_go_on else now

    def _feed(self) -> None:
        """Fill the engine up with groups of samples, each of one query at one temperature; evaluation comes on top."""
        n, most = self.section.samples_per_query, self.section.max_in_flight
        # Nothing of an evaluation begins or ends meanwhile.
        aside = self.sampler.aside_in_flight
        while not (own := self.sampler.in_flight - aside) or own + n <= most:
            temperature, source = self._temperature()
            self.sampler.submit(
                self._next_query(),
                n,
                temperature,
                self.adapters.current,
                source,
                every_state=self._every_state,
            )

    def _temperature(self) -> tuple[float, Source]:
        if self._random.random() >= self.section.tempered_share:
            return 1.0, "policy"
        return self._random.uniform(self.section.temperature_low, self.section.temperature_high), "tempered"

    def _next_query(self) -> Query:
        """Every query once in a random order, then again."""
        if not self._order:
            self._order = self._random.sample(self.queries, len(self.queries))
        return self._order.pop()

    def _push_if_due(self) -> None:
        if time.monotonic() - self._last_push >= self.section.push_every_s:
            self._push()

    def _push(self) -> None:
        self._last_push = time.monotonic()
        if not self._ready:
            return
        ready, self._ready = self._ready, []
        self._push_or_wait(ready)

    def _push_or_wait(self, trajectories: Sequence[Trajectory], from_actor: bool = True) -> bool:
        """Push; while Redis is full, say so and try again, so that nothing scored is lost before the run stops."""
        while True:
            try:
                with self.metrics.push_time.time():
                    result = self.buffer.push(trajectories, from_actor=from_actor)
            except BufferFull as error:
                log.error("%s", error)
                self.metrics.refused.inc(len(trajectories))
                self._keep_evaluation()
                self._beat(f"{FULL}: {error}")
                time.sleep(FULL_S)
                self.metrics.blocked.inc(FULL_S)
                if self._may_go_on():
                    continue
                return False
            self.metrics.refused.inc(result.refused)
            self.metrics.pushed.inc(len(trajectories))
            self._pushed += len(trajectories)
            return True

    def _set_aside(self, payload: bytes, reason: str) -> None:
        """A sample that makes no valid trajectory never stops the run."""
        log.warning("sample set aside: %s", reason)
        self.buffer.quarantine.add(payload, reason=reason, origin=self.id)

    def _beat(self, phase: str) -> None:
        adapters = getattr(self, "adapters", None)
        current = adapters.current if adapters else None
        probe = adapters.probe if adapters else None
        held_out = getattr(self, "_held_out", None)
        self.control.heartbeat(
            self.id,
            {
                "phase": phase,
                "host": platform.node(),
                "pid": os.getpid(),
                "metrics_address": self.metrics_address,
                "pushed": getattr(self, "_pushed", 0),
                **self._own_reward_status(),
                "adapter_version": current.version if current else 0,
                "adapter_sha256": current.sha256 if current else None,
                "probe_with_adapter": probe.with_adapter if probe else None,
                "probe_without_adapter": probe.without if probe else None,
                "adapter_error": adapters.last_error if adapters else None,
                "evaluating": held_out.version if held_out else None,
                "drawn": self._drawn,
                WAIT_SHARE: self._wait_share(),
                HAND_OVERS: adapters.hand_overs_s if adapters else [],
            },
        )

    def _wait_share(self) -> float | None:
        """Of the time since it could sample first, as long as it was to."""
        if self._first_adapter_at is None:
            return None
        until = time.monotonic() if self._over_at is None else self._over_at
        return self._blocked_s / max(1e-9, until - self._first_adapter_at)

    def _own_reward_status(self) -> dict[str, object]:
        """Texts that a reward of the user's own gave no value for, and why the last of them has none."""
        sampler = getattr(self, "sampler", None)
        own = sampler.own_reward if sampler else None
        if own is None:
            return {}
        return {"reward_failures": own.outcomes.total() - own.outcomes["valued"], "reward_error": own.last_failure}

    def evaluate(
        self, requests: Sequence[SampleRequest], split: Split = "test", most: int | None = None
    ) -> dict[str, dict[str, list[bytes]]]:
        """Samples for a task's evaluation with the newest adapter: label -> query id -> encoded trajectories.

        They are of all of its queries, or of `most` that are spread evenly over them.
        The learner is done by then, so its cores are taken as well, where Ray is the run's own. Raises RunFault where
        the newest adapter is asked for and can't be loaded: another actor may be able to.
        """
        if self._evaluation_threads:
            self.engine.use_threads(self._evaluation_threads)
        while self.sampler.in_flight:
            # Left over from training, under older versions.
            self.sampler.step()
        self.adapters.try_again()
        version = self.adapters.is_behind()
        if version is not None:
            self._load(version)
        if any(request.adapter for request in requests):
            self.adapters.check_newest()
        queries = self.task.queries(split)
        if most is not None:
            queries = spread(queries, most)
        found = {}
        for request in requests:
            groups = self.sampler.collect(
                queries, request, self.adapters.current, self.section.max_in_flight, self._say_how_far
            )
            found[request.label] = {key: [item.to_bytes() for item in group] for key, group in groups.items()}
        self._say_how_far(0, 0)
        return found

    def _say_how_far(self, done: int, n: int) -> None:
        """Of an evaluation's samples, to whoever looks at the run; of none once there is nothing to draw."""
        if n and time.monotonic() < self._next_word:
            return
        self._next_word, self._drawn = time.monotonic() + HOUSEKEEPING_S, (done, n) if n else None
        # The evaluation needs no Redis.
        with contextlib.suppress(RedisError):
            self._beat("evaluating" if n else STOPPED)

    def close(self) -> None:
        """Delete temporary files, end processes."""
        self.sampler.close()
        self.adapters.close()
