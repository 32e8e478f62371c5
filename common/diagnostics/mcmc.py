"""Metropolis-Hastings: chains whose states come to follow the distribution ∝ R, and whether they have.

The kernel asks for the proposals of all chains at once, so that an engine can make them in one batch. The proposal for
rationales keeps the actions up to a random place and draws the rest anew; source: power sampling by MCMC
(arXiv 2510.14901), whose blocks it does without. R̂ and effective sample sizes are those of Vehtari et al. 2021
(arXiv 1903.08008), by arviz-stats. No engine inside.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
StateT = TypeVar("StateT")


@dataclass(frozen=True)
class Proposal(Generic[StateT]):
    """A state that a chain may go to."""

    state: StateT
    log_r: float
    """In nats, unnormalised; -inf for what is never gone to."""
    log_ratio: float
    """log g(old|new) − log g(new|old) of the proposal's probabilities, in nats."""


Propose = Callable[[Sequence[StateT]], Sequence[Proposal[StateT]]]
"""One proposal for the state of each chain, in their order."""


@dataclass(frozen=True)
class Chains(Generic[StateT]):
    """What the chains went through after their starts; a state stands once for every step that it was stayed at."""

    states: list[list[StateT]]
    """By chain, then by step."""
    log_r: Floats
    """Shape (chains, steps)."""
    acceptance: Floats
    """Share of the steps whose proposal was accepted, shape (chains,); one that is the old state over again is, too."""

    def after(self, warm_up: int) -> Chains[StateT]:
        """Without the first steps, which still know their start."""
        return Chains([chain[warm_up:] for chain in self.states], self.log_r[:, warm_up:], self.acceptance)

    def spread(self, n: int) -> list[StateT]:
        """`n` of all states, spread evenly over chains and steps; with repetitions where there are fewer."""
        # One chain after the other, as a stride over all of them in turn can meet the same one again and again.
        chains, steps = len(self.states), len(self.states[0])
        return [self.states[i % chains][(2 * i + 1) * steps // (2 * n)] for i in range(n)]


def metropolis_hastings(
    start: Sequence[StateT],
    log_r: Sequence[float],
    propose: Propose[StateT],
    steps: int,
    generator: np.random.Generator,
) -> Chains[StateT]:
    """`steps` of a chain from each start, whose log R must be finite: a proposal is accepted with probability
    min(1, R(new) g(old|new) / (R(old) g(new|old)))."""
    now, now_log_r = list(start), np.array(log_r, np.float64)
    if not np.isfinite(now_log_r).all():
        raise ValueError("a chain starts where log R is not finite")
    states: list[list[StateT]] = [[] for _ in now]
    trace, accepted = np.empty((len(now), steps)), np.zeros(len(now))
    for step in range(steps):
        for i, proposal in enumerate(propose(now)):
            # Exponentially distributed is −log of a uniform number.
            if proposal.log_r - now_log_r[i] + proposal.log_ratio > -generator.exponential():
                now[i], now_log_r[i] = proposal.state, proposal.log_r
                accepted[i] += 1
            states[i].append(now[i])
        trace[:, step] = now_log_r
    return Chains(states, trace, accepted / max(1, steps))


def n_cuts(n_actions: int, max_len: int) -> int:
    """At how many of the decision states s_0..s_K there is something to draw anew: at `max_len` there is not."""
    return min(n_actions, max_len - 1) + 1


def suffix_log_ratio(cut: int, old: Floats, new: Floats, max_len: int) -> float:
    """log g(old|new) − log g(new|old) where the actions before `cut` are kept and the rest is drawn anew.

    `old` and `new` hold log g of each action given those before it and of ⊤ at the end, shape (K+1,), under the mask;
    that of ⊤ is 0 at `max_len`. The place of the cut is uniform over those that there are, which is another number for
    another length. What leads to `new` by another cut is a move of its own, with a balance of its own.
    """
    places = math.log(n_cuts(len(old) - 1, max_len)) - math.log(n_cuts(len(new) - 1, max_len))
    return places + float(np.sum(old[cut:])) - float(np.sum(new[cut:]))


@dataclass(frozen=True)
class Convergence:
    """Whether chains tell the same, by the worst of several quantities."""

    r_hat: float
    """Rank-normalised split R̂, 1 where chains agree; NaN where no proposal was ever accepted."""
    effective_sample_size: float
    """Of how many independent draws all of the chains' steps are worth: the lower of bulk and tail, and no more than
    there were starts and accepted proposals."""
    acceptance: float
    """Share of the proposals that were accepted."""

    @property
    def reached(self) -> bool:
        """R̂ < 1.01 and 400 effective draws, as Vehtari et al. 2021 ask for."""
        return self.r_hat < R_HAT_LIMIT and self.effective_sample_size >= MIN_EFFECTIVE


FIRST_TOKENS, LEAST_SHARE = 4, 0.05
"""First tokens that chains are compared by, the most frequent ones; rarer ones have no R̂ that can be read."""
PROJECTIONS = 2
"""Random ones, of the tokens and of the whole."""


def content_of(chains: Sequence[Sequence[tuple[int, ...]]]) -> list[Floats]:
    """What chains of rationales are made of, as numbers by which they can be compared, each of shape (chains, steps).

    Chains in different modes may have the same log R and the same lengths. So it is asked whether a rationale begins
    with one of the first tokens that are frequent, what its tokens sum to, and what it is itself, each with random
    numbers for tokens and for rationales, which are the same in all chains.
    """
    shape = (len(chains), len(chains[0]))
    flat = [z for chain in chains for z in chain]
    first = Counter(z[:1] for z in flat)
    frequent = [begin for begin, n in first.most_common(FIRST_TOKENS) if n >= LEAST_SHARE * len(flat)]
    found = [np.array([z[:1] == begin for z in flat], np.float64) for begin in frequent]
    generator = np.random.default_rng(0)
    of_token = {token: generator.normal(size=PROJECTIONS) for token in sorted({token for z in flat for token in z})}
    of_whole = {z: generator.normal(size=PROJECTIONS) for z in sorted(set(flat))}
    nothing = np.zeros(PROJECTIONS)
    sums = np.array([sum((of_token[token] for token in z), nothing) for z in flat])
    found += [*sums.T, *np.array([of_whole[z] for z in flat]).T]
    return [values.reshape(shape) for values in found]


R_HAT_LIMIT = 1.01
MIN_EFFECTIVE = 400
"""Both by Vehtari et al. 2021, sections 4.3 and 4.1; the latter with four chains."""


def convergence(quantities: Sequence[Floats], acceptance: Floats) -> Convergence:
    """Of chains of which numbers are known, each of shape (chains, steps) with 4 steps or more.

    A number that is the same everywhere is one that all chains agree about. If that is all of them, the chains are
    worth what they accepted, which led to where they were. Of a few steps no autocorrelation can be seen: chains are
    never worth more than that, and one draw each for where they were at first.
    """
    from arviz_stats.base import array_stats

    r_hats, sizes = [], []
    for values in quantities:
        if np.ptp(values) == 0:
            continue
        # Chains that each stay where they are are as far apart as can be.
        with np.errstate(divide="ignore", invalid="ignore"):
            r_hats.append(float(array_stats.rhat(values, chain_axis=0, draw_axis=1, method="rank")))
        sizes.append(float(array_stats.ess(values, chain_axis=0, draw_axis=1, method="bulk")))
        sizes.append(float(array_stats.ess(values, chain_axis=0, draw_axis=1, method="tail", prob=(0.05, 0.95))))
    sizes = [size for size in sizes if math.isfinite(size)]
    accepted = float(np.sum(acceptance)) * max((values.shape[1] for values in quantities), default=0)
    if not r_hats and accepted > 0:
        return Convergence(1.0, accepted, float(np.mean(acceptance)))
    size = min(*sizes, accepted + len(acceptance)) if sizes else math.nan
    return Convergence(max(r_hats, default=math.nan), size, float(np.mean(acceptance)))
