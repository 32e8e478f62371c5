"""From queries to scored trajectories: submit, sample, score, assemble. The engine's batch is never left to drain."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from actors.beam import BeamSearch
from actors.engine import Engine, LoadedAdapter, Sampled
from actors.reference import ReferenceScorer
from actors.scoring import RewardComponents, Rollout, Scored, TokenScores, reward_components, texts_to_score
from common.errors import UserError
from common.log import get_logger
from common.metrics import ActorMetrics
from common.seeds import SeedJob
from common.tasks import SampleRequest, Task
from common.tasks.base import unreadable
from common.tools import ToolError
from common.trajectory import NO_SHA256, Behaviour, Query, Source, ToolEvent, Trajectory

log = get_logger("sampler")


@dataclass(frozen=True)
class _Origin:
    """What a sampling request was submitted with: it finishes under this adapter, whatever is loaded meanwhile."""

    query: Query
    adapter: LoadedAdapter | None
    temperature: float
    source: Source
    hint_ids: tuple[int, ...] | None = None
    """The prompt that was sampled under, where it is not the query's own."""
    every_state: bool = True
    """Whether the likelihood is wanted at every state, as training needs it, or at the last alone."""
    top_p: float = 1.0
    top_k: int = 0

    @property
    def sampling_prompt(self) -> list[int]:
        return list(self.hint_ids) if self.hint_ids is not None else self.query.prompt_ids.tolist()


@dataclass
class _Draft:
    """A rationale in the making: the policy's tokens, what tools inserted, and how it is going to end."""

    origin: _Origin
    actions: list[int] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    events: list[ToolEvent] = field(default_factory=list)
    stop_log_prob: float = 0.0
    """0 where max_len forces the end."""

    def act(self, token: int, log_prob: float) -> None:
        """Append an action."""
        self.positions.append(len(self.inputs))
        self.actions.append(token)
        self.inputs.append(token)
        self.log_probs.append(log_prob)

    def rollout(self) -> Rollout:
        """What is scored."""
        actions, inputs, positions = (
            np.asarray(values, np.int32) for values in (self.actions, self.inputs, self.positions)
        )
        return Rollout(self.origin.query, actions, inputs, positions, tuple(self.events))


@dataclass
class _Pending:
    """A finished sample whose scores are still coming."""

    draft: _Draft
    rollout: Rollout
    scores: list[TokenScores | None]
    stoppable: NDArray[np.bool_]
    """States where the policy may stop, shape (K+1,)."""
    wanted: NDArray[np.bool_]
    """Those whose likelihood is scored."""


@dataclass
class TrajectorySampler:
    """Turns sampling requests into scored trajectories, as results come in."""

    task: Task[Any]
    policy: Engine
    reference: Engine | ReferenceScorer
    """The same engine as `policy`, unless the reward has a precision of its own."""
    metrics: ActorMetrics
    actor_id: str = ""
    score_cache: int = 100_000
    max_model_len: int = 2**31
    """Of the engines, in tokens: what tools insert must leave room for the rest."""
    make_beam_search: Callable[[], BeamSearch] | None = None
    """Loads what beam search needs, where an evaluation asks for it."""
    on_rejected: Callable[[bytes, str], None] = lambda payload, reason: None
    """Told of samples that make no valid trajectory: their action ids (int32) and the reason."""
    _counter: int = 0
    _known_at_once: list[Trajectory] = field(default_factory=list)
    _sampling: dict[str, _Draft] = field(default_factory=dict)
    _scoring: dict[str, tuple[_Pending, int]] = field(default_factory=dict)
    _same: dict[str, list[_Pending]] = field(default_factory=dict)
    """By what is being scored: further samples of the very same, which wait for that."""
    _known: OrderedDict[str, RewardComponents] = field(default_factory=OrderedDict)

    @property
    def in_flight(self) -> int:
        """Requests in the engines, which everything waits for."""
        return len(self._sampling) + len(self._scoring)

    def submit(
        self,
        query: Query,
        n: int,
        temperature: float,
        adapter: LoadedAdapter | None,
        source: Source = "policy",
        *,
        every_state: bool = True,
        top_p: float = 1.0,
        top_k: int = 0,
    ) -> None:
        """Ask for `n` samples of a query; without `every_state` the likelihood is that of the last state alone."""
        origin = _Origin(query, adapter, temperature, source, every_state=every_state, top_p=top_p, top_k=top_k)
        for _ in range(n):
            self._sample_on(_Draft(origin))

    def submit_seed(self, query: Query, job: SeedJob, *, every_state: bool = True) -> None:
        """Score a given rationale, or draw some from the base model under the job's hint and score them."""
        if job.action_ids is None:
            assert job.hint_ids is not None
            for _ in range(job.n):
                self._sample_on(_Draft(_Origin(query, None, 1.0, "seed", job.hint_ids, every_state)))
            return
        self.submit_given(query, job.action_ids, every_state=every_state)

    def submit_given(self, query: Query, action_ids: Sequence[int], *, every_state: bool = True) -> None:
        """Score a given rationale."""
        draft = _Draft(_Origin(query, None, 1.0, "seed", every_state=every_state))
        for token in action_ids:
            draft.act(token, math.nan)
            self._use_tool(draft)
        done = self._score(draft)
        if done is not None:
            self._known_at_once.append(done)

    def step(self) -> list[Trajectory]:
        """Advance the engines once; trajectories whose scores are complete."""
        sampling, reference = self.policy.busy, self.reference
        results: list[Sampled | Scored] = self.policy.step() if sampling else []
        if isinstance(reference, ReferenceScorer) and reference.busy and (reference.worth_a_pass or not sampling):
            results += reference.step()
        return self.accept(results)

    def accept(self, results: Sequence[Sampled | Scored]) -> list[Trajectory]:
        """Take results of the engines in; trajectories that they complete."""
        done, self._known_at_once = self._known_at_once, []
        for result in results:
            if isinstance(result, Scored):
                done += self._on_scored(result)
                continue
            trajectory = self._on_sampled(result)
            if trajectory is not None:
                done.append(trajectory)
        self.metrics.in_flight.set(self.in_flight)
        return done

    def collect(
        self, queries: Sequence[Query], request: SampleRequest, adapter: LoadedAdapter | None, max_in_flight: int
    ) -> dict[str, list[Trajectory]]:
        """All samples of a request, by query id; nothing else may be in flight. Beam search is the model's alone."""
        waiting = self._submissions(queries, request, adapter)
        found: dict[str, list[Trajectory]] = {query.id: [] for query in queries}
        while waiting or self.in_flight:
            while waiting and self.in_flight < max_in_flight:
                waiting.pop()()
            for trajectory in self.step():
                found[trajectory.query_id].append(trajectory)
        return found

    def _submissions(
        self, queries: Sequence[Query], request: SampleRequest, adapter: LoadedAdapter | None
    ) -> list[Callable[[], None]]:
        """One call for each sample of a request."""
        if request.beams:
            search = self._beam_search
            return [
                partial(self.submit_given, query, ids, every_state=request.every_state)
                for query in queries
                for ids in search.search(query, request.beams, request.diversity_penalty)[: request.n]
            ]
        source: Source = "policy" if request.temperature == 1.0 else "tempered"
        return [
            partial(
                self.submit,
                query,
                1,
                request.temperature,
                adapter if request.adapter else None,
                source,
                every_state=request.every_state,
                top_p=request.top_p,
                top_k=request.top_k,
            )
            for query in queries
            for _ in range(request.n)
        ]

    @cached_property
    def _beam_search(self) -> BeamSearch:
        """Its model is loaded once, for whoever asks."""
        if self.make_beam_search is None or self.task.tool is not None:
            raise UserError("task", self.task.name, "beam search knows no tools", "leave it out of the evaluation")
        return self.make_beam_search()

    def _sample_on(self, draft: _Draft) -> None:
        request_id, origin = self._next_id("sample"), draft.origin
        self._sampling[request_id] = draft
        self.policy.submit_sample(
            request_id,
            [*origin.sampling_prompt, *draft.inputs],
            origin.temperature,
            origin.adapter,
            taken=draft.actions,
            top_p=origin.top_p,
            top_k=origin.top_k,
        )

    def _use_tool(self, draft: _Draft) -> None:
        """After a trigger, let the tool write; a call that goes wrong is an event of the trajectory."""
        tool, space = self.task.tool, self.task.action_space
        if tool is None or draft.actions[-1] not in space.trigger_ids:
            return
        query = draft.origin.query
        try:
            text = tool(self.task.codec.decode_prompt([*draft.origin.sampling_prompt, *draft.inputs]))
            inserted = [] if text is None else self.task.codec.encode(text)
            reason = unreadable(self.task.codec, inserted)
            if reason is not None:
                raise ToolError("unusable", reason)
            if len(inserted) > self._room(draft):
                raise ToolError("too_long", f"{len(inserted)} tokens don't fit into actor.max_model_len")
        except ToolError as error:
            log.warning("tool on query %s: %s (%s)", query.id, error.kind, error)
            self.metrics.tool_calls.labels(error.kind).inc()
            draft.events.append(ToolEvent(len(draft.actions), error.kind))
            return
        self.metrics.tool_calls.labels("inserted" if inserted else "nothing").inc()
        draft.inputs += inserted

    def _room(self, draft: _Draft) -> int:
        """Tokens that tools may still insert: the rest of the rationale, ⊤ and the longest target must fit behind."""
        origin, inserted = draft.origin, len(draft.inputs) - len(draft.actions)
        needed = origin.query.tokens_needed(self.task.action_space.max_len, len(origin.sampling_prompt))
        return self.max_model_len - needed - inserted

    def _next_id(self, kind: str) -> str:
        self._counter += 1
        return f"{kind}-{self._counter}"

    def _on_sampled(self, sampled: Sampled) -> Trajectory | None:
        draft = self._sampling.pop(sampled.request_id)
        self.metrics.sampled_tokens.inc(len(sampled.action_ids))
        for token, log_prob in zip(sampled.action_ids.tolist(), sampled.log_probs.tolist(), strict=True):
            draft.act(token, log_prob)
        if sampled.stop_log_prob is None:
            if len(sampled.action_ids):
                self._use_tool(draft)
            if len(draft.actions) < self.task.action_space.max_len:
                self._sample_on(draft)
                return None
        else:
            draft.stop_log_prob = sampled.stop_log_prob
        self.metrics.samples.labels(draft.origin.source).inc()
        return self._score(draft)

    def _score(self, draft: _Draft) -> Trajectory | None:
        """Ask the reference for what is missing; the trajectory at once if nothing is."""
        rollout, space = draft.rollout(), self.task.action_space
        stoppable = space.stoppable(rollout.action_ids)
        wanted = stoppable if draft.origin.every_state else np.arange(len(stoppable)) == len(stoppable) - 1
        pending = _Pending(draft, rollout, [], stoppable, wanted)
        key = self._key(pending)
        known = self._known.get(key)
        if known is not None:
            self.metrics.score_cache_hits.inc()
            return self._assemble(pending, known)
        if key in self._same:
            self.metrics.score_cache_hits.inc()
            self._same[key].append(pending)
            return None
        self._same[key] = []
        texts = texts_to_score(rollout, space.terminator_id, wanted, terminator_in_text=self.task.terminator_in_reward)
        pending.scores = [None] * len(texts)
        for i, text in enumerate(texts):
            request_id = self._next_id("score")
            self._scoring[request_id] = (pending, i)
            self.reference.submit_score(request_id, text)
            self.metrics.scored_tokens.inc(len(text.ids))
        self.metrics.scored_texts.inc(len(texts))
        return None

    def _on_scored(self, scored: Scored) -> list[Trajectory]:
        pending, i = self._scoring.pop(scored.request_id)
        pending.scores[i] = scored.scores
        complete = [found for found in pending.scores if found is not None]
        if len(complete) < len(pending.scores):
            return []
        components = reward_components(
            pending.rollout,
            complete,
            terminator_in_reward=self.task.terminator_in_reward,
            stoppable=pending.stoppable,
            wanted=pending.wanted,
        )
        key = self._key(pending)
        self._known[key] = components
        if len(self._known) > self.score_cache:
            self._known.popitem(last=False)
        made = [self._assemble(same, components) for same in (pending, *self._same.pop(key))]
        return [trajectory for trajectory in made if trajectory is not None]

    @staticmethod
    def _key(pending: _Pending) -> str:
        rollout = pending.rollout
        # Which are no part of a query's id.
        others = "/".join(ids.tobytes().hex() for ids in rollout.query.alternatives)
        return f"{rollout.query.id}:{others}:{pending.wanted.tobytes().hex()}:{rollout.input_ids.tobytes().hex()}"

    def _assemble(self, pending: _Pending, components: RewardComponents) -> Trajectory | None:
        try:
            return self._trajectory(pending, components)
        except ValidationError as error:
            self.metrics.quarantined.inc()
            self.on_rejected(pending.rollout.action_ids.tobytes(), error.errors()[0]["msg"])
            return None

    def _trajectory(self, pending: _Pending, components: RewardComponents) -> Trajectory:
        draft, rollout = pending.draft, pending.rollout
        origin = draft.origin
        log_probs = np.asarray(draft.log_probs, np.float32)
        stop_log_prob = draft.stop_log_prob
        if origin.source == "seed":
            # Given, or drawn under a hint: that says nothing of log q(Z⊤|X).
            log_probs, stop_log_prob = np.full_like(log_probs, np.nan), math.nan
        penalty = self.task.misleading_penalty * components.misleads
        return Trajectory(
            query_id=origin.query.id,
            task=self.task.name,
            action_ids=rollout.action_ids,
            input_ids=rollout.input_ids,
            action_positions=rollout.action_positions,
            log_prior=components.log_prior,
            log_likelihood=components.log_likelihood,
            log_constraint=self.task.log_constraint(origin.query, rollout.action_ids) - penalty,
            log_alternatives=components.log_alternatives,
            behaviour=Behaviour(
                adapter_version=origin.adapter.version if origin.adapter else 0,
                adapter_sha256=origin.adapter.sha256 if origin.adapter else NO_SHA256,
                temperature=origin.temperature,
                sampler_log_prob=log_probs,
                stop_log_prob=stop_log_prob,
            ),
            source=origin.source,
            created_at=time.time(),
            actor_id=self.actor_id,
            tool_events=rollout.tool_events,
        )
