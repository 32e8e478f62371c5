"""From queries to scored trajectories: submit, sample, score, assemble. The engine's batch is never left to drain."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client import Counter
from pydantic import ValidationError

from actors.beam import BeamSearch
from actors.drafting import Draft, Listener, Origin, use_tool
from actors.engine import Engine, LoadedAdapter, Progress, Result, Sampled
from actors.reference import ReferenceScorer
from actors.scoring import (
    RewardComponents,
    Rollout,
    Scored,
    ScoreText,
    TokenScores,
    reward_components,
    states_to_score,
    texts_to_score,
    values_at_states,
)
from common.errors import RunFault, UserError
from common.log import get_logger
from common.metrics import ActorMetrics
from common.reward import FloatArray
from common.reward_calls import NoValue, OwnReward, Subject, Valued
from common.seeds import SeedJob
from common.tasks import SampleRequest, Task
from common.trajectory import NO_SHA256, Behaviour, Query, Source, Trajectory

log = get_logger("sampler")
VALUE_WAIT_S = 0.05
"""For a reward of the user's own, where there is nothing else to do: it ends as soon as there is an answer."""


@dataclass
class _Pending:
    """A finished sample whose scores are still coming."""

    draft: Draft
    rollout: Rollout
    scores: list[TokenScores | None]
    own: FloatArray | NoValue | None
    """What a reward of the user's own gives at every state, shape (K+1,); None while that is coming."""
    stoppable: NDArray[np.bool_]
    """States where the policy may stop, shape (K+1,)."""
    wanted: NDArray[np.bool_]
    """Those whose likelihood is scored, and that a reward of the user's own is asked about."""


@dataclass(frozen=True)
class _Known:
    """All that scoring gives."""

    components: RewardComponents
    own: FloatArray


@dataclass
class TrajectorySampler:
    """Turns sampling requests into scored trajectories, as results come in."""

    task: Task[Any]
    policy: Engine
    reference: Engine | ReferenceScorer
    """The same engine as `policy`, unless a copy of the model scores beside it."""
    metrics: ActorMetrics
    actor_id: str = ""
    score_cache: int = 100_000
    max_model_len: int = 2**31
    """Of the engines, in tokens: what tools insert must leave room for the rest."""
    reward_every: int = 1
    """Where the likelihood is scored at more than the last state, at every so many."""
    make_beam_search: Callable[[], BeamSearch] | None = None
    """Loads what beam search needs, where an evaluation asks for it."""
    on_rejected: Callable[[bytes, str], None] = lambda payload, reason: None
    """Told of samples for the buffer that make no valid trajectory: their action ids (int32) and the reason."""
    last_rejection: str = ""
    """Why the last of them was rejected."""
    tokens: int = 0
    """That were sampled, ⊤ left out, or read to be scored, so far."""
    _collecting: bool = False
    _counter: int = 0
    _known_at_once: list[Trajectory] = field(default_factory=list)
    _sampling: dict[str, Draft] = field(default_factory=dict)
    _scoring: dict[str, tuple[_Pending, int, ScoreText]] = field(default_factory=dict)
    _of_queries: dict[ScoreText, TokenScores] = field(default_factory=dict)
    """Texts that are the same for all rationales of a query, and of most tasks for all queries: read once."""
    _same: dict[str, list[_Pending]] = field(default_factory=dict)
    """By what is being scored: further samples of the very same, which wait for that."""
    _known: OrderedDict[str, _Known] = field(default_factory=OrderedDict)
    _valuing: dict[str, _Pending] = field(default_factory=dict)
    """By the ticket under which a reward of the user's own is asked about them."""

    def __post_init__(self) -> None:
        section = self.task.own_reward
        self.own_reward = (
            None
            if section is None
            else OwnReward(
                section, lambda outcome: self.metrics.reward_texts.labels(outcome).inc(), cache=self.score_cache
            )
        )

    @property
    def in_flight(self) -> int:
        """Requests in the engines, and rollouts with a reward of the user's own, which everything waits for."""
        return len(self._sampling) + len(self._scoring) + len(self._valuing)

    def check_own_reward(self) -> None:
        """Raises RunFault where a reward of the user's own has never given anything, and there is no hope for it."""
        if self.own_reward is not None and self.own_reward.hopeless is not None:
            raise RunFault(self.own_reward.hopeless)

    @property
    def aside_in_flight(self) -> int:
        """Those of them that are of an evaluation beside training."""
        pending = [*(item for item, _, _ in self._scoring.values()), *self._valuing.values()]
        return sum(draft.origin.aside for draft in self._sampling.values()) + sum(
            item.draft.origin.aside for item in pending
        )

    def close(self) -> None:
        """End the processes of a reward of the user's own."""
        if self.own_reward is not None:
            self.own_reward.close()

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
        max_len: int | None = None,
        seed: str | None = None,
        score: bool = True,
        follow: bool = False,
        tell: Listener | None = None,
        aside: bool = False,
    ) -> list[Draft]:
        """Ask for `n` samples of a query; without `every_state` the likelihood is that of the last state alone.

        With `tell` each is told of when it is done, and with `follow` whenever it grows, instead of being among what
        `step` returns; without `score` nothing but the rationale is made. A `max_len` below the task's cuts them off;
        those of a `seed` are drawn alike another time, as far as the rounding of other requests in the batch allows.
        What is `aside` is for an evaluation beside training.
        """
        assert (score and max_len is None and not aside) or tell is not None
        origin = Origin(
            query,
            adapter,
            temperature,
            source,
            every_state=every_state,
            top_p=top_p,
            top_k=top_k,
            max_len=max_len,
            seed=seed,
            score=score,
            follow=follow,
            tell=tell,
            aside=aside,
        )
        drafts = [Draft(origin, number) for number in range(n)]
        try:
            for draft in drafts:
                self._sample_on(draft)
        except BaseException:
            # Nobody has these drafts yet, who could abort them.
            self.abort(drafts)
            raise
        return drafts

    def abort(self, drafts: Collection[Draft]) -> None:
        """Stop sampling, scoring and valuing these; nothing is told of them any more. What others of the very same
        wait for goes on."""
        for draft in drafts:
            draft.aborted, draft.origin = True, replace(draft.origin, tell=lambda _: None)
        for key, same in self._same.items():
            self._same[key] = [pending for pending in same if not pending.draft.aborted]

        def is_left(pending: _Pending) -> bool:
            return pending.draft.aborted and not self._same.get(self._key(pending))

        scoring = {name: pending for name, (pending, _, _) in self._scoring.items() if is_left(pending)}
        valuing = {name: pending for name, pending in self._valuing.items() if is_left(pending)}
        for pending in (*scoring.values(), *valuing.values()):
            self._same.pop(self._key(pending), None)
        self._drop([name for name, draft in self._sampling.items() if draft.aborted], scoring, valuing)

    def abort_all(self) -> None:
        """Stop all that there is, wherever an interruption came between."""
        self._drop(list(self._sampling), list(self._scoring), list(self._valuing))
        self._same.clear()
        self._known_at_once.clear()

    def _drop(self, sampling: Collection[str], scoring: Collection[str], valuing: Collection[str]) -> None:
        """Take requests out of the engines, and tickets back; their results will never come."""
        for request_id in sampling:
            del self._sampling[request_id]
        for request_id in scoring:
            del self._scoring[request_id]
        for ticket in valuing:
            del self._valuing[ticket]
        if sampling:
            self.policy.abort(sampling)
        if scoring:
            self.reference.abort(scoring)
        if valuing and self.own_reward is not None:
            self.own_reward.withdraw(valuing)

    def submit_seed(self, query: Query, job: SeedJob, *, every_state: bool = True) -> None:
        """Score a given rationale, or draw some from the base model under the job's hint and score them."""
        if job.action_ids is None:
            assert job.hint_ids is not None
            for _ in range(job.n):
                self._sample_on(Draft(Origin(query, None, 1.0, "seed", job.hint_ids, every_state)))
            return
        self.submit_given(query, job.action_ids, every_state=every_state)

    def submit_begun(self, drafts: Sequence[Draft]) -> None:
        """Sample these on from where they stand, below the task's max_len, and score them; each has its own `tell`."""
        for draft in drafts:
            assert draft.origin.tell is not None
            self._sample_on(draft)

    def submit_given(
        self, query: Query, action_ids: Sequence[int], *, every_state: bool = True, tell: Listener | None = None
    ) -> Draft:
        """Score a given rationale; `tell` as in `submit`."""
        draft = Draft(Origin(query, None, 1.0, "seed", every_state=every_state, tell=tell))
        for token in action_ids:
            draft.act(token, math.nan)
            self._use_tool(draft)
        done = self._score(draft)
        if done is not None:
            self._known_at_once.append(done)
        return draft

    def step(self) -> list[Trajectory]:
        """Advance the engines once; trajectories whose scores are complete."""
        sampling, reference = self.policy.busy, self.reference
        results: list[Result] = self.policy.step() if sampling else []
        if isinstance(reference, ReferenceScorer) and reference.busy and (reference.worth_a_pass or not sampling):
            results += reference.step()
        idle = not self._sampling and not self._scoring and not self._known_at_once
        return self.accept(results, VALUE_WAIT_S if idle else 0.0)

    def accept(self, results: Sequence[Result], wait_s: float = 0.0) -> list[Trajectory]:
        """Take results of the engines in, and what a reward of the user's own has given by now or within `wait_s`;
        trajectories that they complete."""
        done, self._known_at_once = self._known_at_once, []
        for result in results:
            if isinstance(result, Scored):
                done += self._on_scored(result)
                continue
            if isinstance(result, Progress):
                self._on_progress(result)
                continue
            trajectory = self._on_sampled(result)
            if trajectory is not None:
                done.append(trajectory)
        if self.own_reward is not None:
            for valued in self.own_reward.poll(wait_s):
                done += self._on_valued(valued)
        self.metrics.in_flight.set(self.in_flight)
        return done

    def collect(
        self,
        queries: Sequence[Query],
        request: SampleRequest,
        adapter: LoadedAdapter | None,
        max_in_flight: int,
        told: Callable[[int, int], None] = lambda done, n: None,
    ) -> dict[str, list[Trajectory]]:
        """All samples of a request, by query id, in the order in which they were asked for: in that in which they end
        the first would be the shortest. Nothing else may be in flight. Beam search is the model's alone, and given
        rationales are nobody's: they have no log q. `told` hears of each that is done, and how many there are.

        Those that make no valid trajectory are missing. Where it is interrupted or fails, nothing is left in flight.
        """
        n, waiting = self._submissions(queries, request, adapter)
        drafts: list[Draft] = []
        self._collecting = True
        done = 0
        try:
            submit = next(waiting, None)
            while submit is not None or self.in_flight:
                while submit is not None and self.in_flight < max_in_flight:
                    drafts.append(submit())
                    submit = next(waiting, None)
                for _ in self.step():
                    done += 1
                    told(done, n)
                self.check_own_reward()
        except BaseException:
            # The next call would take what is left for its own.
            self.abort_all()
            raise
        finally:
            self._collecting = False
        if done < len(drafts):
            missing = len(drafts) - done
            log.warning("%d samples of %s are missing, the last: %s", missing, request.label, self.last_rejection)
        found: dict[str, list[Trajectory]] = {query.id: [] for query in queries}
        for draft in drafts:
            if draft.trajectory is not None:
                found[draft.origin.query.id].append(draft.trajectory)
        return found

    def _submissions(
        self, queries: Sequence[Query], request: SampleRequest, adapter: LoadedAdapter | None
    ) -> tuple[int, Iterator[Callable[[], Draft]]]:
        """How many samples of a request there are, and one call for each. Beams are searched for as they are asked for,
        and may be fewer where the mask allows no more."""
        if request.beams:
            search = self._beam_search

            def beams(query: Query) -> list[list[int]]:
                return search.search(query, request.beams, request.diversity_penalty)[: request.n]

            most = min(request.n, request.beams)
            return most * len(queries), self._of_given(queries, beams, request)
        if request.given:
            known = {**self.task.known_rationales(), **self.task.rationales()}
            given = {query.id: known.get(query.id, [])[: request.n] for query in queries}
            n = sum(map(len, given.values()))
            return n, self._of_given(queries, lambda query: given[query.id], request)
        source: Source = "policy" if request.temperature == 1.0 else "tempered"

        def one(query: Query) -> Draft:
            (draft,) = self.submit(
                query,
                1,
                request.temperature,
                adapter if request.adapter else None,
                source,
                every_state=request.every_state,
                top_p=request.top_p,
                top_k=request.top_k,
            )
            return draft

        return request.n * len(queries), (partial(one, query) for query in queries for _ in range(request.n))

    def _of_given(
        self, queries: Sequence[Query], rationales: Callable[[Query], Sequence[Sequence[int]]], request: SampleRequest
    ) -> Iterator[Callable[[], Draft]]:
        for query in queries:
            for ids in rationales(query):
                yield partial(self.submit_given, query, ids, every_state=request.every_state)

    @cached_property
    def _beam_search(self) -> BeamSearch:
        """Its model is loaded once, for whoever asks."""
        if self.make_beam_search is None or self.task.tool is not None:
            raise UserError("task", self.task.name, "beam search knows no tools", "leave it out of the evaluation")
        return self.make_beam_search()

    def _sample_on(self, draft: Draft) -> None:
        request_id, origin = self._next_id("sample"), draft.origin
        if not draft.inputs:
            # What goes on later has read it already.
            self.tokens += len(origin.sampling_prompt)
        # Before it is in the engine, so that an interruption leaves nothing there that is unknown here.
        self._sampling[request_id] = draft
        self.policy.submit_sample(
            request_id,
            [*origin.sampling_prompt, *draft.inputs],
            origin.temperature,
            origin.adapter,
            taken=draft.actions,
            top_p=origin.top_p,
            top_k=origin.top_k,
            max_len=origin.max_len,
            seed=draft.seed(),
            follow=origin.follow,
        )

    def _count(self, counter: Counter, tokens: int) -> None:
        counter.inc(tokens)
        self.tokens += tokens

    def _use_tool(self, draft: Draft) -> None:
        use_tool(draft, self.task, self.metrics, self.max_model_len)

    def _next_id(self, kind: str) -> str:
        self._counter += 1
        return f"{kind}-{self._counter}"

    def _on_progress(self, progress: Progress) -> None:
        draft = self._sampling[progress.request_id]
        draft.take(progress.action_ids, progress.log_probs)
        assert draft.origin.tell is not None
        draft.origin.tell(draft)

    def _on_sampled(self, sampled: Sampled) -> Trajectory | None:
        draft = self._sampling.pop(sampled.request_id)
        draft.take(sampled.action_ids.tolist(), sampled.log_probs.tolist())
        max_len = self.task.action_space.max_len
        if sampled.stop_log_prob is None:
            if len(sampled.action_ids):
                self._use_tool(draft)
            if len(draft.actions) < min(max_len, draft.origin.max_len or max_len):
                self._sample_on(draft)
                return None
        draft.end(sampled.stop_log_prob, max_len)
        self._count(self.metrics.sampled_tokens, len(draft.actions) - draft.given)
        self.metrics.samples.labels("evaluation" if draft.origin.aside else draft.origin.source).inc()
        if not draft.origin.score:
            draft.finish()
            return None
        return self._score(draft)

    def _score(self, draft: Draft) -> Trajectory | None:
        """Ask the reference for what is missing; the trajectory at once if nothing is."""
        rollout, space = draft.rollout(), self.task.action_space
        stoppable = space.stoppable(rollout.action_ids)
        wanted = states_to_score(stoppable, self.reward_every if draft.origin.every_state else None)
        own = None if self.own_reward is not None else np.zeros(len(stoppable), np.float32)
        pending = _Pending(draft, rollout, [], own, stoppable, wanted)
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
        texts = texts_to_score(
            rollout,
            space.terminator_id,
            wanted,
            terminator_in_text=self.task.terminator_in_reward,
        )
        pending.scores = [self._of_queries.get(text) for text in texts]
        for i, text in enumerate(texts):
            if pending.scores[i] is not None:
                continue
            request_id = self._next_id("score")
            self._scoring[request_id] = (pending, i, text)
            self.reference.submit_score(request_id, text)
            self._count(self.metrics.scored_tokens, len(text.ids))
            self.metrics.scored_texts.inc()
        self._ask_own_reward(pending)
        return None

    def _ask_own_reward(self, pending: _Pending) -> None:
        """Ask a reward of the user's own about the text at every state that is wanted."""
        if self.own_reward is None:
            return
        ticket, rollout, codec = self._next_id("value"), pending.rollout, self.task.codec
        query, ends = rollout.query, rollout.state_ends[pending.wanted].tolist()
        self._valuing[ticket] = pending
        subject = Subject(query.id, codec.decode_prompt(query.prompt_ids), query.row)
        texts = [codec.decode(rollout.input_ids[:end]) for end in ends]
        self.own_reward.submit(ticket, subject, texts, aside=pending.draft.origin.aside)

    def _on_valued(self, valued: Valued) -> list[Trajectory]:
        pending = self._valuing.pop(valued.ticket)
        if isinstance(valued.found, NoValue):
            pending.own = valued.found
        else:
            pending.own = values_at_states(valued.found, stoppable=pending.stoppable, wanted=pending.wanted)
        return self._complete(pending)

    def _on_scored(self, scored: Scored) -> list[Trajectory]:
        pending, i, text = self._scoring.pop(scored.request_id)
        pending.scores[i] = scored.scores
        if text.of_query:
            if len(self._of_queries) >= self.score_cache:
                # Of targets that callers of a service make up.
                self._of_queries.clear()
            self._of_queries[text] = scored.scores
        return self._complete(pending)

    def _complete(self, pending: _Pending) -> list[Trajectory]:
        """The trajectories of a rollout, and of others like it, once all of its scores are there."""
        complete = [found for found in pending.scores if found is not None]
        if len(complete) < len(pending.scores) or pending.own is None:
            return []
        if isinstance(pending.own, NoValue):
            for same in (pending, *self._same.pop(self._key(pending))):
                self._reject(same, f"task.reward {pending.own.kind}: {pending.own.message}")
            return []
        components = reward_components(
            pending.rollout,
            complete,
            terminator_in_reward=self.task.terminator_in_reward,
            stoppable=pending.stoppable,
            wanted=pending.wanted,
            calibrated=self.task.calibrated_reward,
        )
        key = self._key(pending)
        found = _Known(components, pending.own)
        self._known[key] = found
        if len(self._known) > self.score_cache:
            self._known.popitem(last=False)
        made = [self._assemble(same, found) for same in (pending, *self._same.pop(key))]
        return [trajectory for trajectory in made if trajectory is not None]

    @staticmethod
    def _key(pending: _Pending) -> str:
        rollout = pending.rollout
        # Which are no part of a query's id.
        query = rollout.query
        others = "/".join(ids.tobytes().hex() for ids in (query.content_free_ids, *query.alternatives))
        return f"{rollout.query.id}:{others}:{pending.wanted.tobytes().hex()}:{rollout.input_ids.tobytes().hex()}"

    def _assemble(self, pending: _Pending, found: _Known) -> Trajectory | None:
        """The trajectory, if it is valid and nobody is told of it."""
        pending.draft.log_prefix = float(found.components.log_prefix[-1])
        try:
            trajectory = self._trajectory(pending, found.components, found.own)
        except ValidationError as error:
            self._reject(pending, error.errors()[0]["msg"])
            return None
        pending.draft.finish(trajectory)
        return trajectory if pending.draft.origin.tell is None else None

    def _reject(self, pending: _Pending, reason: str) -> None:
        self.last_rejection = reason
        # What is drawn for an evaluation is nothing of the buffer's: whoever asked for it counts what is missing.
        if not pending.draft.origin.aside and not self._collecting:
            self.metrics.quarantined.inc()
            self.on_rejected(pending.rollout.action_ids.tobytes(), reason)
        pending.draft.finish(rejected=reason)

    def _trajectory(self, pending: _Pending, components: RewardComponents, own: FloatArray) -> Trajectory:
        draft, rollout = pending.draft, pending.rollout
        origin = draft.origin
        log_probs = np.asarray(draft.log_probs, np.float32)
        stop_log_prob = draft.stop_log_prob
        if origin.source == "seed":
            # Given, or drawn under a hint: that says nothing of log q(Z⊤|X).
            log_probs, stop_log_prob = np.full_like(log_probs, np.nan), math.nan
        penalty = self.task.misleading_penalty * components.misleads
        if self.task.misleading_penalty and len(origin.query.alternatives):
            # Where nobody asked, log R isn't known, whatever the likelihood weighs.
            penalty[pending.stoppable & ~pending.wanted] = np.nan
        return Trajectory(
            query_id=origin.query.id,
            task=self.task.name,
            action_ids=rollout.action_ids,
            input_ids=rollout.input_ids,
            action_positions=rollout.action_positions,
            log_prior=components.log_prior,
            log_likelihood=components.log_likelihood,
            log_constraint=self.task.log_constraint(origin.query, rollout.action_ids) - penalty + own,
            log_alternatives=components.log_alternatives,
            log_choices=components.log_choices,
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
