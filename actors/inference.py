"""Draws of the posterior itself without training, by the engine: enumeration, rejection, Metropolis-Hastings and
sequential Monte Carlo.

All of them ask for the log R of rationales as an actor does, with masks, tools, constraints and rewards of one's own.
What they propose comes from the base model under the mask, or from an adapter. Their arithmetic is in
`common/diagnostics/`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, cycle

import numpy as np
from numpy.typing import NDArray

from actors.drafting import Draft, Origin
from actors.engine import LoadedAdapter
from actors.sampler import TrajectorySampler
from common.config import InferenceSection
from common.diagnostics.enumeration import Enumerated, Z, every_rationale
from common.diagnostics.mcmc import (
    Chains,
    Convergence,
    Proposal,
    content_of,
    convergence,
    metropolis_hastings,
    n_cuts,
    suffix_log_ratio,
)
from common.diagnostics.rejection import TOKEN_ERROR, AboveBound, Excess, accepted, rounding_of
from common.diagnostics.smc import Extended, Population, sequential_monte_carlo
from common.errors import RunFault, UserError
from common.reward import RewardWeights, weighted_sum
from common.trajectory import Query, Trajectory

Floats = NDArray[np.float64]
MOST_AT_ONCE = 1_024
"""Proposals of a query that are drawn before those are looked at that there are."""


@dataclass(frozen=True)
class Rejection:
    """What was kept of a query's proposals."""

    kept: list[Draft]
    proposals: int
    """That were drawn, up to the last one that was kept or to the last of all."""
    excess: Excess
    """Of all that were drawn."""

    @property
    def acceptance(self) -> float:
        """Share that was kept."""
        return len(self.kept) / max(1, self.proposals)


@dataclass(frozen=True)
class ChainsOfQuery:
    """A query's chains, without their warm-up."""

    chains: Chains[Draft]
    convergence: Convergence


@dataclass(frozen=True)
class KnownRationale:
    """Where a chain may start: a rationale, and how likely what proposes was to write it."""

    action_ids: Z
    log_g: Floats
    """Of each action given those before it and of ⊤, under the mask, in nats, shape (K+1,); 0 for ⊤ at `max_len`."""


@dataclass(frozen=True)
class Particle:
    """An unfinished rationale of sequential Monte Carlo, or a finished one."""

    draft: Draft
    log_gamma: float
    """log of the intermediate target at it, in nats: β_prior log p(Z|X) without ⊤ and what `log_guide` says, over τ."""
    log_guide: float
    """Likelihood and constraint, weighted, had it stopped at the last state where it could; not yet over τ."""


@dataclass
class Inference:
    """Draws for a task's queries, one method at a time; nothing else may be in flight."""

    sampler: TrajectorySampler
    weights: RewardWeights
    temperature: float
    """Of the reward, τ."""
    section: InferenceSection
    max_in_flight: int
    generator: np.random.Generator
    adapter: LoadedAdapter | None = None
    """What proposes; None: the base model, under the prompt that the reference reads."""
    token_error: float = TOKEN_ERROR["float32"]
    """What rounding does to a token's log-probability, its standard deviation in nats."""
    told: Callable[[int, int], None] = lambda done, n: None
    """Hears how far a method is: how many steps of all chains, or how many queries, and of how many."""
    without_reward: int = field(default=0, init=False)
    """Rationales that made no valid trajectory, as where a reward of the user's own gives nothing: taken as R = 0."""

    def log_r(self, trajectory: Trajectory | None) -> float:
        """As it is trained for, in nats; -inf where there is none."""
        return -math.inf if trajectory is None else float(trajectory.log_reward(self.weights, self.temperature)[-1])

    def enumerate(self, query: Query) -> tuple[Enumerated, list[Trajectory]]:
        """Every rationale that the mask allows, scored: the exact posterior, and the trajectories in its order. Those
        that make no valid trajectory are taken as R = 0, as the other methods take them, and counted.

        Raises UserError for more than `inference.enumerate_limit`, RunFault where none has a reward.
        """
        space, limit = self.sampler.task.action_space, self.section.enumerate_limit
        found = every_rationale(space, limit)
        if found is None:
            raise too_many(limit)
        drafts = self.score(query, found)
        valid = [(z, draft.trajectory) for z, draft in zip(found, drafts, strict=True) if draft.trajectory is not None]
        if not valid:
            reason = next((draft.rejected for draft in drafts), "the mask allows none")
            raise RunFault(
                f"none of {len(drafts)} rationales has a reward, so that nothing can be enumerated: {reason}"
            )
        trajectories = [trajectory for _, trajectory in valid]
        log_r = np.array([self.log_r(item) for item in trajectories], np.float64)
        return Enumerated(tuple(z for z, _ in valid), log_r, len(drafts) - len(valid)), trajectories

    def score(self, query: Query, rationales: Sequence[Z]) -> list[Draft]:
        """Given rationales with their trajectories."""

        def submission(ids: Z) -> Callable[[], list[Draft]]:
            return lambda: [self.sampler.submit_given(query, ids, every_state=False, tell=_nobody)]

        return self._run([submission(ids) for ids in rationales])

    def draw(self, queries: Iterable[Query]) -> list[Draft]:
        """One proposal for each of the queries, scored."""
        return self._go_on([Draft(self._origin(query), number) for number, query in enumerate(queries)])

    def reject(self, queries: Sequence[Query], n: int, log_bound: float) -> dict[str, Rejection]:
        """Up to `n` exact draws of each query, by its id, of `inference.max_proposals` at most; `log_bound` is what
        log R − log g is nowhere above. Raises RunFault where it is by more than rounding."""
        found = {}
        for query in queries:
            found[query.id] = self._reject(query, n, log_bound)
            self.told(len(found), len(queries))
        return found

    def _reject(self, query: Query, n: int, log_bound: float) -> Rejection:
        kept: list[Draft] = []
        proposals, most, excess = 0, self.section.max_proposals, Excess()
        # Where log R has the prior with a weight, it has the prior's rounding with it.
        token_error = self.token_error * max(1.0, self.weights.prior / self.temperature)
        while len(kept) < n and proposals < most:
            # As many as will do by what is known so far.
            guess = math.ceil((n - len(kept)) * (proposals + 1) / (len(kept) + 1))
            drafts = self.draw([query] * min(guess, MOST_AT_ONCE, most - proposals))
            log_weights = np.array([self.log_r(draft.trajectory) - draft.log_prob for draft in drafts], np.float64)
            rounding = rounding_of(np.array([len(draft.actions) + 1 for draft in drafts]), token_error)
            try:
                chosen = np.flatnonzero(accepted(log_weights, log_bound, self.generator, rounding))[: n - len(kept)]
            except AboveBound as error:
                raise RunFault(f"query {query.id}: {error}; raise inference.constraint_bound") from error
            excess += Excess.of(log_weights, log_bound)
            kept += [drafts[i] for i in chosen]
            proposals += int(chosen[-1]) + 1 if len(kept) == n else len(drafts)
        return Rejection(kept, proposals, excess)

    def chains(
        self, queries: Sequence[Query], known: Mapping[str, Sequence[KnownRationale]] | None = None
    ) -> dict[str, ChainsOfQuery]:
        """Metropolis-Hastings over the rationales of each query, by its id: `inference.chains` of `mcmc_steps`, the
        first half of which is left out. All chains of all queries move together.

        Every second chain of a query starts at one of its `known` rationales, where there are any, and the others at
        proposals: where these never find what is known, or leave it, chains don't agree. Raises RunFault where none
        can start.
        """
        each, steps = self.section.chains, self.section.mcmc_steps
        start = self._starts([query for query in queries for _ in range(each)])
        for i, query in enumerate(queries):
            begun = self._at(query, (known or {}).get(query.id, ()))
            for place, draft in zip(range(i * each + 1, (i + 1) * each, 2), cycle(begun), strict=False):
                start[place] = draft
        log_r = [self.log_r(draft.trajectory) for draft in start]
        made = count(1)

        def propose(states: Sequence[Draft]) -> list[Proposal[Draft]]:
            proposed = self._propose_suffixes(states)
            self.told(next(made), steps)
            return proposed

        found = metropolis_hastings(start, log_r, propose, steps, self.generator).after(steps // 2)
        out = {}
        for i, query in enumerate(queries):
            part = slice(i * each, (i + 1) * each)
            own = Chains(found.states[part], found.log_r[part], found.acceptance[part])
            lengths = np.array([[len(draft.actions) for draft in chain] for chain in own.states], np.float64)
            content = content_of([[tuple(draft.actions) for draft in chain] for chain in own.states])
            out[query.id] = ChainsOfQuery(own, convergence([own.log_r, lengths, *content], own.acceptance))
        return out

    def _starts(self, queries: Sequence[Query], attempts: int = 10) -> list[Draft]:
        """A proposal each that has a reward."""
        found = self.draw(queries)
        for _ in range(attempts):
            missing = [i for i, draft in enumerate(found) if draft.trajectory is None]
            if not missing:
                return found
            for i, draft in zip(missing, self.draw([queries[i] for i in missing]), strict=True):
                found[i] = draft
        raise RunFault(f"no rationale with a reward was found to start a chain from: {self.sampler.last_rejection}")

    def _at(self, query: Query, known: Sequence[KnownRationale]) -> list[Draft]:
        """Known rationales as if they had been proposed, of those that have a reward and could have been."""
        drafts = self.score(query, [item.action_ids for item in known])
        for draft, item in zip(drafts, known, strict=True):
            draft.origin = self._origin(query)
            *draft.log_probs, draft.stop_log_prob = item.log_g.tolist()
        return [draft for draft in drafts if math.isfinite(self.log_r(draft.trajectory) + draft.log_prob)]

    def _propose_suffixes(self, states: Sequence[Draft]) -> list[Proposal[Draft]]:
        max_len = self.sampler.task.action_space.max_len
        cuts = [int(self.generator.integers(n_cuts(len(draft.actions), max_len))) for draft in states]
        drafts = self._go_on([old.begun(cut, old.origin) for old, cut in zip(states, cuts, strict=True)])
        return [
            Proposal(new, self.log_r(new.trajectory), suffix_log_ratio(cut, _log_probs(old), _log_probs(new), max_len))
            for old, new, cut in zip(states, drafts, cuts, strict=True)
        ]

    def particles(self, query: Query) -> Population[Draft]:
        """Sequential Monte Carlo with `inference.particles`, which grow by `smc_block` tokens between two weighings.

        An unfinished one weighs as if it had stopped there, ⊤ left out: by its prior, and by the likelihood and the
        constraint at the last state where it could stop.
        """
        start = Particle(Draft(self._origin(query)), 0.0, 0.0)
        found = sequential_monte_carlo([start] * self.section.particles, self._extend, self.generator)
        drafts = [particle.draft for particle in found.states]
        return Population(drafts, found.log_weights, found.log_z, found.resamplings, found.ancestors)

    def _extend(self, particles: Sequence[Particle]) -> list[Extended[Particle]]:
        begun = []
        for particle in particles:
            taken = len(particle.draft.actions)
            origin = replace(particle.draft.origin, max_len=taken + self.section.smc_block)
            begun.append(particle.draft.begun(taken, origin))
        return [self._weighed(*pair) for pair in zip(particles, self._go_on(begun), strict=True)]

    def _weighed(self, old: Particle, draft: Draft) -> Extended[Particle]:
        log_g = draft.log_prob - float(np.sum(old.draft.log_probs, dtype=np.float64))
        if not draft.cut:
            log_r = self.log_r(draft.trajectory)
            return Extended(Particle(draft, log_r, 0.0), log_r - old.log_gamma - log_g, done=True)
        found, guide = draft.trajectory, old.log_guide
        if found is None:
            # Of a text without end a reward of the user's own may say nothing: it goes on as it is drawn.
            return Extended(Particle(draft, old.log_gamma + log_g, guide), 0.0, done=False)
        if self.sampler.task.action_space.stoppable(found.action_ids)[-1]:
            guide = weighted_sum(0.0, float(found.log_likelihood[-1]), float(found.log_constraint[-1]), self.weights)
        assert draft.log_prefix is not None
        log_gamma = (self.weights.prior * draft.log_prefix + guide) / self.temperature
        return Extended(Particle(draft, log_gamma, guide), log_gamma - old.log_gamma - log_g, done=False)

    def _origin(self, query: Query) -> Origin:
        hint = tuple(query.reference_ids.tolist()) if self.adapter is None and len(query.reference_ids) else None
        return Origin(query, self.adapter, 1.0, "policy", hint, every_state=False, tell=_nobody)

    def _go_on(self, begun: Sequence[Draft]) -> list[Draft]:
        """These drafts to their ends."""

        def submission(draft: Draft) -> Callable[[], list[Draft]]:
            def submit() -> list[Draft]:
                self.sampler.submit_begun([draft])
                return [draft]

            return submit

        return self._run([submission(draft) for draft in begun])

    def _run(self, submissions: Sequence[Callable[[], list[Draft]]]) -> list[Draft]:
        """All that is submitted, in its order, done. Where it is interrupted, nothing is left in flight."""
        waiting, drafts = list(reversed(submissions)), list[Draft]()
        try:
            while waiting or self.sampler.in_flight:
                while waiting and self.sampler.in_flight < self.max_in_flight:
                    drafts += waiting.pop()()
                self.sampler.step()
                self.sampler.check_own_reward()
        except BaseException:
            self.sampler.abort_all()
            raise
        self.without_reward += sum(draft.trajectory is None for draft in drafts)
        return drafts


def too_many(limit: int) -> UserError:
    """There is more to enumerate than may be."""
    problem = "is below the number of rationales that the mask allows"
    return UserError("inference.enumerate_limit", limit, problem, "raise it, or use mcmc")


def _log_probs(draft: Draft) -> Floats:
    """log g of each action and of ⊤, shape (K+1,)."""
    return np.array([*draft.log_probs, draft.stop_log_prob], np.float64)


def _nobody(draft: Draft) -> None:
    """Whoever draws looks at all drafts when they are done."""
