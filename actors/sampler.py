"""From queries to scored trajectories: submit, sample, score, assemble. The engine's batch is never left to drain."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from pydantic import ValidationError

from actors.engine import Engine, LoadedAdapter, Sampled, Scored
from actors.scoring import Rollout, TokenScores, reward_components, texts_to_score
from common.metrics import ActorMetrics
from common.reward import FloatArray
from common.seeds import SeedJob
from common.tasks import SampleRequest, Task
from common.trajectory import NO_SHA256, Behaviour, Query, Source, Trajectory


@dataclass(frozen=True)
class _Origin:
    """What a sampling request was submitted with: it finishes under this adapter, whatever is loaded meanwhile."""

    query: Query
    adapter: LoadedAdapter | None
    temperature: float
    source: Source


@dataclass
class _Pending:
    """A finished sample whose scores are still coming."""

    origin: _Origin
    rollout: Rollout
    sampled: Sampled
    scores: list[TokenScores | None]


@dataclass
class TrajectorySampler:
    """Turns sampling requests into scored trajectories, as results come in."""

    task: Task[Any]
    policy: Engine
    reference: Engine
    """The same engine as `policy`, unless the reward has a precision of its own."""
    metrics: ActorMetrics
    actor_id: str = ""
    score_cache: int = 100_000
    on_rejected: Callable[[bytes, str], None] = lambda payload, reason: None
    """Told of samples that make no valid trajectory: their action ids (int32) and the reason."""
    _counter: int = 0
    _known_at_once: list[Trajectory] = field(default_factory=list)
    _sampling: dict[str, _Origin] = field(default_factory=dict)
    _scoring: dict[str, tuple[_Pending, int]] = field(default_factory=dict)
    _known: OrderedDict[str, tuple[FloatArray, FloatArray]] = field(default_factory=OrderedDict)

    @property
    def in_flight(self) -> int:
        """Requests in the engines."""
        return len(self._sampling) + len(self._scoring)

    def submit(
        self, query: Query, n: int, temperature: float, adapter: LoadedAdapter | None, source: Source = "policy"
    ) -> None:
        """Ask for `n` samples of a query."""
        for _ in range(n):
            request_id = self._next_id("sample")
            self._sampling[request_id] = _Origin(query, adapter, temperature, source)
            self.policy.submit_sample(request_id, query.prompt_ids.tolist(), temperature, adapter)

    def submit_seed(self, query: Query, job: SeedJob) -> None:
        """Score a given rationale, or draw some from the base model under the job's hint and score them."""
        if job.action_ids is None:
            assert job.hint_ids is not None
            for _ in range(job.n):
                request_id = self._next_id("sample")
                self._sampling[request_id] = _Origin(query, None, 1.0, "seed")
                self.policy.submit_sample(request_id, list(job.hint_ids), 1.0, None)
            return
        actions = np.asarray(job.action_ids, np.int32)
        # Nothing was sampled: no policy has given these a probability.
        unknown = np.full(len(actions), np.nan, np.float32)
        done = self._score(_Origin(query, None, 1.0, "seed"), Sampled("", actions, unknown, math.nan))
        if done is not None:
            self._known_at_once.append(done)

    def step(self) -> list[Trajectory]:
        """Advance the engines once; trajectories whose scores are complete."""
        results = self.policy.step() if self.policy.busy else []
        if self.reference is not self.policy and self.reference.busy:
            results += self.reference.step()
        return self.accept(results)

    def accept(self, results: Sequence[Sampled | Scored]) -> list[Trajectory]:
        """Take results of the engines in; trajectories that they complete."""
        done, self._known_at_once = self._known_at_once, []
        for result in results:
            trajectory = self._on_sampled(result) if isinstance(result, Sampled) else self._on_scored(result)
            if trajectory is not None:
                done.append(trajectory)
        self.metrics.in_flight.set(self.in_flight)
        return done

    def collect(
        self, queries: Sequence[Query], request: SampleRequest, adapter: LoadedAdapter | None, max_in_flight: int
    ) -> dict[str, list[Trajectory]]:
        """All samples of a request, by query id; nothing else may be in flight."""
        waiting = [query for query in queries for _ in range(request.n)]
        found: dict[str, list[Trajectory]] = {query.id: [] for query in queries}
        source: Source = "policy" if request.temperature == 1.0 else "tempered"
        while waiting or self.in_flight:
            while waiting and self.in_flight < max_in_flight:
                self.submit(waiting.pop(), 1, request.temperature, adapter if request.adapter else None, source)
            for trajectory in self.step():
                found[trajectory.query_id].append(trajectory)
        return found

    def _next_id(self, kind: str) -> str:
        self._counter += 1
        return f"{kind}-{self._counter}"

    def _on_sampled(self, sampled: Sampled) -> Trajectory | None:
        origin = self._sampling.pop(sampled.request_id)
        self.metrics.samples.labels(origin.source).inc()
        self.metrics.sampled_tokens.inc(len(sampled.action_ids))
        if origin.source == "seed":
            # Drawn under the hint: that says nothing of log q(Z⊤|X).
            sampled = replace(sampled, log_probs=np.full_like(sampled.log_probs, np.nan), stop_log_prob=math.nan)
        return self._score(origin, sampled)

    def _score(self, origin: _Origin, sampled: Sampled) -> Trajectory | None:
        """Ask the reference for what is missing; the trajectory at once if nothing is."""
        positions = np.arange(len(sampled.action_ids), dtype=np.int32)
        rollout = Rollout(origin.query, sampled.action_ids, sampled.action_ids, positions)
        pending = _Pending(origin, rollout, sampled, [])
        known = self._known.get(self._key(rollout))
        if known is not None:
            self.metrics.score_cache_hits.inc()
            return self._assemble(pending, *known)
        space = self.task.action_space
        texts = texts_to_score(rollout, space.terminator_id, space.min_len)
        pending.scores = [None] * len(texts)
        for i, text in enumerate(texts):
            request_id = self._next_id("score")
            self._scoring[request_id] = (pending, i)
            self.reference.submit_score(request_id, text)
            self.metrics.scored_tokens.inc(len(text.ids))
        self.metrics.scored_texts.inc(len(texts))
        return None

    def _on_scored(self, scored: Scored) -> Trajectory | None:
        pending, i = self._scoring.pop(scored.request_id)
        pending.scores[i] = scored.scores
        complete = [found for found in pending.scores if found is not None]
        if len(complete) < len(pending.scores):
            return None
        components = reward_components(
            pending.rollout,
            complete,
            terminator_in_reward=self.task.terminator_in_reward,
            min_len=self.task.action_space.min_len,
        )
        self._known[self._key(pending.rollout)] = components
        if len(self._known) > self.score_cache:
            self._known.popitem(last=False)
        return self._assemble(pending, *components)

    @staticmethod
    def _key(rollout: Rollout) -> str:
        return f"{rollout.query.id}:{rollout.input_ids.tobytes().hex()}"

    def _assemble(self, pending: _Pending, log_prior: FloatArray, log_likelihood: FloatArray) -> Trajectory | None:
        try:
            return self._trajectory(pending, log_prior, log_likelihood)
        except ValidationError as error:
            self.metrics.quarantined.inc()
            self.on_rejected(pending.rollout.action_ids.tobytes(), error.errors()[0]["msg"])
            return None

    def _trajectory(self, pending: _Pending, log_prior: FloatArray, log_likelihood: FloatArray) -> Trajectory:
        origin, rollout = pending.origin, pending.rollout
        return Trajectory(
            query_id=origin.query.id,
            task=self.task.name,
            action_ids=rollout.action_ids,
            input_ids=rollout.input_ids,
            action_positions=rollout.action_positions,
            log_prior=log_prior,
            log_likelihood=log_likelihood,
            log_constraint=self.task.log_constraint(origin.query, rollout.action_ids),
            behaviour=Behaviour(
                adapter_version=origin.adapter.version if origin.adapter else 0,
                adapter_sha256=origin.adapter.sha256 if origin.adapter else NO_SHA256,
                temperature=origin.temperature,
                sampler_log_prob=pending.sampled.log_probs,
                stop_log_prob=pending.sampled.stop_log_prob,
            ),
            source=origin.source,
            created_at=time.time(),
            actor_id=self.actor_id,
        )
