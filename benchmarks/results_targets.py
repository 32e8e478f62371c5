"""What the page of results says of figures: a target met or missed, by how much and why, and the best of a sweep."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from common.tasks.figures import on_hull
from deploy.comparison.table import ON_TRAINING, Entry

Figures = Mapping[tuple[str, str, str], Entry]
"""Of a comparison, by condition, method and figure."""
_TELLING = 0.1
"""Effective sample size from which on a length bias tells something."""
LENGTHS = {f"log_reward_of_{i}_to_{i + 4}": f"log p, {i} to {i + 4} tokens" for i in (1, 6, 11, 16)}
"""Figures of continuation by length, with their titles."""
SHAPE_FIGURES = {
    "ess": "effective sample size",
    "length_bias": "length bias",
    "prefix_collapse": "prefix collapse",
    "distinct_prefixes": "beginnings",
    "mean_actions": "length",
    "mean_log_reward": "mean log R",
}
_BEST: Mapping[str, tuple[str, Callable[[float], float]]] = {
    "ess": ("largest effective sample size", lambda value: -value),
    "length_bias": ("length bias nearest 0", abs),
    "distinct_prefixes": ("most beginnings", lambda value: -value),
    "mean_log_reward": ("largest mean log R", lambda value: -value),
}
"""Figures of the draws' shape: which is the best of them, and what is least there."""
_PLACES = 3
_SUBMODULAR = ", submodular replay"


@dataclass(frozen=True)
class Target:
    """A method's figure, held against another's: at least `factor` times that one, and `more`."""

    method: str
    figure: str
    than: str
    words: str
    """Of the figure."""
    condition: str = ""
    factor: float = 1.0
    more: float = 0.0
    rows: int | None = None
    """Test rows that it is a share of."""
    like: tuple[str, ...] = ()
    """Figures of the test rows that are like the training rows, where the figure's own aren't."""

    def judged(self, figures: Figures) -> str | None:
        """Whether it is met, in a sentence; None where a method is missing."""
        value, other = (figures.get((self.condition, method, self.figure)) for method in (self.method, self.than))
        if value is None or other is None:
            return None
        times = "" if self.factor == 1 else f"{self.factor:g} × "
        more = "" if self.more == 0 else f" + {self.more:g}"
        where = "" if not self.condition else f" with {self.condition}"
        asked = f"{self.method}: {self.words}{where}, at least {times}that of {self.than}, {other.mean:.3f}{more}"
        of_other = self._error(other)
        error = _of_difference(self._error(value), None if of_other is None else self.factor * of_other)
        least = self.factor * other.mean + self.more
        if least > 1 and "accuracy" in self.figure:
            asked += " (above 1, which nothing reaches)"
        why = "" if value.mean >= least or _is_within_chance(value.mean - least, error) else self._why(figures, least)
        return _judged(asked, value.mean, least, error) + why

    def _error(self, entry: Entry) -> float | None:
        """Over seeds, and of a single seed over test rows; None where it isn't known."""
        over_seeds = entry.standard_error
        return _of_share(entry.mean, self.rows) if over_seeds is None and self.rows is not None else over_seeds

    def _why(self, figures: Figures, least: float) -> str:
        """What its other figures say of a miss: learning, generalisation, fit to the posterior; empty without them."""

        def of(figure: str) -> float | None:
            found = figures.get((self.condition, self.method, figure))
            return None if found is None else found.mean

        said = []
        of_training, of_test = of(f"{ON_TRAINING}{self.figure.rpartition('.')[2]}"), of(self.figure)
        if of_training is not None and of_test is not None:
            alike = [value for figure in self.like if (value := of(figure)) is not None]
            beside = f", on test rows that are like them {np.mean(alike):.3f}" if alike else ""
            lost = of_training - float(np.mean(alike or [of_test]))
            learned = "too little is learned" if of_training < min(least, 1.0) else "enough is learned"
            loses = f", {lost:.3f} of it doesn't generalise" if lost > 0 else ""
            said.append(f"on training rows it is {of_training:.3f}{beside}: {learned}{loses}")
        above, below = (of(_beside(self.figure, each)) for each in ("known_above", "known_below"))
        if above is not None and below is not None:
            said.append(f"for {above:.3f} of the queries the given rationale has more R than all that were drawn")
            said.append(f"for {below:.3f} some that was drawn has more")
        ess, bias = of("ess"), of("length_bias")
        if ess is not None:
            said.append(f"its effective sample size is {ess:.3f}")
            if bias is not None and ess >= _TELLING:
                said.append(f"its draws are {abs(bias):.1f} tokens too {'long' if bias > 0 else 'short'}")
        return f" Beside it: {'; '.join(said)}." if said else ""


def _beside(figure: str, name: str) -> str:
    """Another figure of the same test file."""
    return ".".join([*figure.split(".")[:-1], name])


def _of_share(share: float, rows: int) -> float:
    """Standard error of a share of so many rows."""
    return math.sqrt(max(share * (1 - share), 0.0) / rows)


def _is_within_chance(difference: float, error: float | None) -> bool:
    return error is not None and abs(difference) < 2 * error


def all_judged(targets: Sequence[Target], figures: Figures) -> list[str]:
    """A sentence for each target whose methods are there."""
    return [found for target in targets if (found := target.judged(figures)) is not None]


def continuation_target(table: Figures) -> list[str]:
    """Each GFlowNet's log p of the best sample, held against what decoding reaches at its diversity: sentences."""
    points = _against_diversity(table, "max_log_reward")
    decoding = _of_decoding(points)
    found = []
    for method, (diversity, likelihood) in points.items():
        if not method.startswith("GFlowNet") or not decoding:
            continue
        most = max(x for x, _ in decoding.values())
        # No decoding method may be as diverse: then the frontier's end is what there is to hold a sampler against.
        where = "" if diversity <= most else f", which ends at {most:.3f}"
        frontier = _frontier(decoding, diversity)
        if frontier is not None:
            above = f"above the decoding methods' frontier{where}, {frontier:.2f} nats"
            error = _above_frontier(table, "max_log_reward", method, decoding)
            judged = _judged(f"{method} at diversity {diversity:.3f}, {above}", likelihood, frontier, error)
            ess = table.get(("", method, "ess"))
            diagnosed = "" if ess is None else f" Its effective sample size is {ess.mean:.3f}."
            found.append(judged + _by_length(table, method) + diagnosed)
    return found


def _frontier(points: Mapping[str, tuple[float, float]], diversity: float) -> float | None:
    """What methods reach at a diversity, or at their largest where that is less; None below their smallest."""
    return on_hull(list(points.values()), min(diversity, max(x for x, _ in points.values())))


def _above_frontier(table: Figures, figure: str, method: str, decoding: Iterable[str]) -> float | None:
    """Standard error of what a method has above the frontier: over prompts, of which seeds share most of what is by
    chance; of the frontier the decoding method's that has most. None where one isn't known."""
    errors = [table.get(("", name, f"{figure}_se")) for name in (method, *decoding)]
    known = [entry.mean for entry in errors if entry is not None]
    return _of_difference(known[0], max(known[1:])) if len(known) == len(errors) else None


def _by_length(table: Figures, method: str) -> str:
    """log p of its samples of so many tokens, held against decoding methods' of as many, at its diversity."""
    told = []
    for figure, title in LENGTHS.items():
        points = _against_diversity(table, figure)
        decoding = _of_decoding(points)
        if method in points and decoding:
            diversity, likelihood = points[method]
            frontier = _frontier(decoding, diversity)
            if frontier is not None:
                share = table.get(("", method, figure.replace("log_reward", "share")))
                lengths = title.removeprefix("log p, ") + ("" if share is None else f" ({share.mean:.3f} of them)")
                error = _above_frontier(table, figure, method, decoding)
                by = "" if error is None else f", {likelihood - frontier:+.2f} ± {error:.2f}"
                told.append(f"{lengths} {likelihood:.2f} against {frontier:.2f}{by}")
    return f" Of samples of the same length, on the mean: {'; '.join(told)}." if told else ""


def _against_diversity(table: Figures, figure: str) -> dict[str, tuple[float, float]]:
    """Each method's diversity, and a figure."""
    return {
        method: (value.mean, table["", method, figure].mean)
        for (_, method, name), value in table.items()
        if name == "diversity" and ("", method, figure) in table
    }


def _of_decoding(points: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    # MCMC draws from what the GFlowNet learns, at its own price.
    return {method: point for method, point in points.items() if not method.startswith(("GFlowNet", "MCMC"))}


def _of_difference(error: float | None, other: float | None) -> float | None:
    """Standard error of the difference of two figures that are independent; None where one isn't known."""
    return None if error is None or other is None else math.hypot(error, other)


def _judged(asked: str, value: float, least: float, error: float | None = None) -> str:
    by = f"{abs(value - least):.3f}" if error is None else f"{abs(value - least):.3f} ± {error:.3f}"
    chance = ", which chance could make" if _is_within_chance(value - least, error) else ""
    return f"{asked}: {value:.3f}, {'met' if value >= least else 'missed'} by {by}{chance}."


def shape_read(subtb: str, figures: Figures) -> Sequence[str]:
    """The best by each figure, and what submodular replay changes; `subtb` is the row that its own differs from."""
    trained = [method for _, method, figure in figures if figure == "trajectories_trained"]
    told = []
    for figure, (words, order) in _BEST.items():
        found = {method: figures["", method, figure].mean for method in trained if ("", method, figure) in figures}
        if not found:
            continue
        best = sorted(found, key=lambda method: order(found[method]))[:_PLACES]
        told.append(f"{words}: {'; '.join(f'{method} {found[method]:.3f}' for method in best)}")
    for figure in _BEST:
        changes = []
        for after in [method for method in trained if method.endswith(_SUBMODULAR)]:
            name = after.removesuffix(_SUBMODULAR)
            before, now = (figures.get(("", method, figure)) for method in (subtb if name == "subtb" else name, after))
            if before and now:
                changes.append(f"{name} {before.mean:.3f} to {now.mean:.3f}")
        if changes:
            told.append(f"{SHAPE_FIGURES[figure]}, by submodular replay: {'; '.join(changes)}")
    return [f"{each[0].upper()}{each[1:]}." for each in told]
