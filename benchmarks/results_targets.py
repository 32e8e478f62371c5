"""What the page of results says of figures: a target met or missed, by how much and why, and the best of a sweep."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from scipy import stats

from common.tasks.figures import on_hull
from deploy.comparison.table import ESS, ON_TRAINING, Entry

Figures = Mapping[tuple[str, str, str], Entry]
"""Of a comparison, by condition, method and figure."""
COUNTING = 10
"""Draws that must count for their weights to tell anything: as for a verdict, docs/diagnosis.md."""
_BY_WEIGHTS = ("length_bias", "prefix_collapse")
"""Figures that hold draws against the same ones weighed by R/q."""
_MANY = 0.02
"""Share of a sampler's texts from which on those of one length are compared: 20 of 1,000."""
LENGTHS = {f"log_reward_of_{i}_to_{i + 4}": f"log p, {i} to {i + 4} tokens" for i in (1, 6, 11, 16)}
"""Figures of continuation by length, with their titles."""
SHAPE_FIGURES = {
    "ess": "effective sample size",
    "length_bias": "length bias",
    "prefix_collapse": "prefix collapse",
    "distinct_prefixes": "distinct prefixes",
    "mean_actions": "length",
    "mean_log_reward": "mean log R",
}
_BEST: Mapping[str, tuple[str, Callable[[float], float]]] = {
    "ess": ("largest effective sample size", lambda value: -value),
    "length_bias": ("length bias nearest 0", abs),
    "distinct_prefixes": ("most distinct prefixes", lambda value: -value),
}
"""Figures of the draws' shape: which is the best of them, and what is least there."""
_PLACES = 3
_LEVEL = 0.05
"""Of the tests."""
_SUBMODULAR = ", submodular replay"


class Error(NamedTuple):
    """A standard error, and how many degrees of freedom it is known by."""

    size: float
    freedom: float = math.inf

    def p(self, difference: float) -> float:
        """Of a two-sided t-test of the difference against none."""
        if self.size == 0:
            return 0.0 if difference else 1.0
        return 2 * float(stats.t.sf(abs(difference) / self.size, self.freedom))


@dataclass(frozen=True)
class Judged:
    """What is asked of a method's figure, and what came out."""

    method: str
    asked: str
    least: float
    found: float
    error: Error | None
    """Of their difference; None where it isn't known."""
    note: str = ""
    why: str = ""
    """What other figures say of it, or nothing."""
    alone: bool = False
    """Whether a figure is of one seed, which tells nothing of what others give."""
    impossible: bool = False
    """Whether nothing can be what is asked."""

    @property
    def met(self) -> bool:
        """Whether it is what was asked for, by chance or not."""
        return self.found >= self.least

    @property
    def p(self) -> float | None:
        """How likely chance makes so large a difference of none, by a two-sided t-test; None where it isn't known."""
        return None if self.alone or self.error is None else self.error.p(self.found - self.least)

    @property
    def by_chance(self) -> bool:
        """Whether a t-test can't tell the difference from none, at 5%, or there is none, as of one seed."""
        return not self.impossible and (self.p is None or self.p > _LEVEL)

    def row(self) -> str:
        """Of a Markdown table."""
        error = "" if self.error is None else f" ± {self.error.size:.3f}"
        told = ["undecided" if self.by_chance else "met" if self.met else "missed"]
        told += [*(["error not known"] if self.error is None else []), *([self.note] if self.note else [])]
        cells = (
            self.method,
            self.asked,
            f"{self.least:.3f}",
            f"{self.found:.3f}",
            f"{self.found - self.least:+.3f}{error}",
            "-" if self.p is None else "< 0.001" if self.p < 0.001 else f"{self.p:.3f}",
            ", ".join(told),
        )
        return f"| {' | '.join(cells)} |"


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
    starts_from: str = ""
    """The method whose adapter it goes on from."""

    def judged(self, figures: Figures, least_ess: float) -> Judged | None:
        """Whether it is met; None where a method is missing. Of an effective sample size below `least_ess` weights tell
        nothing."""
        value, other = (figures.get((self.condition, method, self.figure)) for method in (self.method, self.than))
        if value is None or other is None:
            return None
        times = "" if self.factor == 1 else f"{self.factor:g} × "
        more = "" if self.more == 0 else f" + {self.more:g}"
        where = "" if not self.condition else f" with {self.condition}"
        least = self.factor * other.mean + self.more
        beyond = least > 1 and "accuracy" in self.figure
        notes = [*(["nothing is above 1"] if beyond else []), *_of_seeds(value, other)]
        found = Judged(
            self.method,
            f"{self.words}{where}: {times}{self.than}{more}",
            least,
            value.mean,
            _of_sum([_error(each, self._of_rows(each)) for each in (value, other)], (1.0, self.factor)),
            ", ".join(notes),
            alone=_is_alone(value) or _is_alone(other),
            impossible=beyond,
        )
        if found.met or (found.by_chance and not found.alone):
            return found
        return replace(found, why=self._why(figures, least, least_ess))

    def _of_rows(self, entry: Entry) -> float | None:
        return None if self.rows is None else _of_share(entry.mean, self.rows)

    def _why(self, figures: Figures, least: float, least_ess: float) -> str:
        """What its other figures say of a miss: learning, generalisation, fit to the posterior; empty without them."""

        def of(figure: str, method: str = self.method) -> float | None:
            found = figures.get((self.condition, method, figure))
            return None if found is None else found.mean

        said = []
        name = f"{ON_TRAINING}{self.figure.rpartition('.')[2]}"
        of_training, of_test, at_start = of(name), of(self.figure), of(name, self.starts_from)
        if of_training is not None and of_test is not None:
            alike = [value for figure in self.like if (value := of(figure)) is not None]
            said.append(f"on training rows it is {of_training:.3f}")
            raw, of_test_raw = (of(figure.removesuffix("_calibrated")) for figure in (name, self.figure))
            if raw is not None and of_test_raw is not None and raw > of_training:
                # Of so few rows both labels needn't be as probable.
                said[-1] += f", {raw:.3f} as the model has it, as which it is {of_test_raw:.3f} on test rows"
                of_training, of_test = raw, of_test_raw
            said[-1] += f", on test rows that are like them {np.mean(alike):.3f}" if alike else ""
            if at_start is not None and of_training < at_start:
                said.append(f"{self.starts_from}, from which it goes on, has {at_start:.3f} there")
            else:
                said[-1] += ": too little is learned" if of_training < min(least, 1.0) else ": enough is learned"
                lost = of_training - float(np.mean(alike or [of_test]))
                said[-1] += f", {lost:.3f} of it doesn't generalise" if lost > 0 else ""
                beyond = float(np.mean(alike)) - of_test if alike else 0.0
                said[-1] += f", and {beyond:.3f} more is lost on rows unlike them" if beyond > 0 else ""
        above, below = (of(_beside(self.figure, each)) for each in ("known_above", "known_below"))
        if above is not None and below is not None:
            said.append(f"for {above:.0%} of the queries R prefers the given rationale to all that were drawn")
            said.append(f"for {below:.0%} it prefers one that was drawn")
        ess, bias = of(ESS), figures.get((self.condition, self.method, "length_bias"))
        if ess is not None:
            said.append(f"its effective sample size by R/q is {ess:.3f}")
            if bias is not None and ess >= least_ess and _differs(bias):
                said.append(f"its draws are {abs(bias.mean):.1f} tokens too {'long' if bias.mean > 0 else 'short'}")
        where = f" with {self.condition}" if self.condition else ""
        return f"{self.method}{where}: {'; '.join(said)}." if said else ""


def _differs(entry: Entry) -> bool:
    """Whether its seeds tell it from 0."""
    error = entry.standard_error
    return error is not None and Error(error, len(entry.values) - 1).p(entry.mean) <= _LEVEL


def _is_alone(entry: Entry) -> bool:
    return len(entry.values) < 2


def _of_seeds(entry: Entry, other: Entry) -> list[str]:
    """Which they are, where they are few or not the same."""
    if {*entry.seeds} == {*other.seeds} and len(entry.seeds) > 1:
        return []
    own, others = (", ".join(map(str, sorted(each.seeds))) for each in (entry, other))
    return [f"seed {own}"] if own == others else [f"seeds {own} against {others}"]


def _beside(figure: str, name: str) -> str:
    """Another figure of the same test file."""
    return ".".join([*figure.split(".")[:-1], name])


def _of_share(share: float, rows: int) -> float:
    """Standard error of a share of so many rows, with two of either kind added (Agresti and Coull 1998): of none at all
    it isn't 0."""
    likely = (share * rows + 2) / (rows + 4)
    return math.sqrt(likely * (1 - likely) / (rows + 4))


def _error(entry: Entry, over_rows: float | None) -> Error | None:
    """Over seeds, and over the test rows, which all seeds share; None where neither is known."""
    over_seeds = entry.standard_error
    parts = [] if over_seeds is None else [Error(over_seeds, len(entry.values) - 1)]
    parts += [] if over_rows is None else [Error(over_rows)]
    return _of_sum(parts) if parts else None


def _of_sum(parts: Sequence[Error | None], weights: Sequence[float] | None = None) -> Error | None:
    """Of a weighted sum of independent figures; None where one isn't known. Degrees of freedom are Welch's (1947)."""
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    squares = [(weight * part.size) ** 2 for weight, part in zip(weights or [1.0] * len(known), known, strict=True)]
    spread = sum(square**2 / part.freedom for square, part in zip(squares, known, strict=True))
    return Error(math.sqrt(sum(squares)), sum(squares) ** 2 / spread if spread > 0 else math.inf)


def all_judged(targets: Sequence[Target], figures: Figures, least_ess: float) -> list[Judged]:
    """Each target whose methods are there; why a method misses under a condition is told once, of its first target."""
    found = [judged for target in targets if (judged := target.judged(figures, least_ess)) is not None]
    whose = [each.why.partition(":")[0] for each in found]
    return [replace(each, why="") if whose[i] in whose[:i] else each for i, each in enumerate(found)]


def continuation_target(table: Figures, _: float) -> list[Judged]:
    """Each GFlowNet's log p of the best sample, held against what decoding reaches at its diversity; and its log p of
    all samples, against that of samples of the same lengths."""
    points = _against_diversity(table, "max_log_reward")
    decoding = _of_decoding(points)
    found = []
    for method, (diversity, likelihood) in points.items():
        frontier = _frontier(decoding, diversity) if decoding and method.startswith("GFlowNet") else None
        if frontier is None:
            continue
        most = max(x for x, _ in decoding.values())
        # No decoding method may be as diverse: then the frontier's end is what there is to hold a sampler against.
        where = f"decoding at diversity {min(diversity, most):.3f}" + ("" if diversity <= most else ", its largest")
        entry, ends = table["", method, "max_log_reward"], [table["", name, "max_log_reward"] for name in decoding]
        note = ", ".join(_of_seeds(entry, min(ends, key=lambda end: len(end.seeds))))
        by_length, why = _by_length(table, method)
        error = _above_frontier(table, entry, decoding)
        asked = f"log p of the best: {where}"
        first = Judged(method, asked, frontier, likelihood, error, note, why, alone=_is_alone(entry))
        found += [first, *([by_length] if by_length else [])]
    return found


def _frontier(points: Mapping[str, tuple[float, float]], diversity: float) -> float | None:
    """What methods reach at a diversity, or at their largest where that is less; None below their smallest."""
    return on_hull(list(points.values()), min(diversity, max(x for x, _ in points.values())))


def _above_frontier(table: Figures, entry: Entry, decoding: Iterable[str]) -> Error | None:
    """Of what a method's figure has above the frontier: over seeds and over prompts, of the frontier as of the decoding
    method whose is largest. None where one isn't known."""
    over_prompts = [table.get(("", name, f"{entry.figure}_se")) for name in (entry.method, *decoding)]
    known = [found.mean for found in over_prompts if found is not None]
    if len(known) < len(over_prompts):
        return None
    return _of_sum([_error(entry, known[0]), Error(max(known[1:]))])


def _by_length(table: Figures, method: str) -> tuple[Judged | None, str]:
    """log p of its samples, held against decoding methods' of as many tokens at its diversity, weighted by how many it
    has; and of each length. Lengths that few have are left out, and seeds of which it isn't known how many have it.
    Errors are as if lengths were of different prompts."""
    told = []
    compared: list[tuple[float, float, float, Error | None]] = []
    alone = False
    notes: list[str] = []
    for figure, title in LENGTHS.items():
        entry, share = table.get(("", method, figure)), table.get(("", method, figure.replace("log_reward", "share")))
        decoding = _of_decoding(_against_diversity(table, figure))
        if entry is not None and share is not None:
            share, entry = share.of_seeds(entry.seeds), entry.of_seeds(share.seeds)
        if entry is None or not entry.seeds or not decoding:
            continue
        frontier = _frontier(decoding, table["", method, "diversity"].of_seeds(entry.seeds).mean)
        if frontier is None:
            continue
        error = _above_frontier(table, entry, decoding)
        by = "" if error is None else f", {entry.mean - frontier:+.2f} ± {error.size:.2f}"
        of_them = "" if share is None else f" ({share.mean:.1%} of its samples)"
        told.append(f"{title.removeprefix('log p, ')}{of_them} {entry.mean:.2f}, decoding {frontier:.2f}{by}")
        if share is not None and share.mean >= _MANY:
            compared.append((share.mean, entry.mean, frontier, error))
            alone |= _is_alone(entry)
            ends = [table["", name, figure] for name in decoding]
            notes += _of_seeds(entry, min(ends, key=lambda end: len(end.seeds)))
    ess = table.get(("", method, ESS))
    told += [] if ess is None else [f"its effective sample size by R/q is {ess.mean:.3f}"]
    why = f"{method}, log p by length: {'; '.join(told)}." if told else ""
    if not compared:
        return None, why
    shares, own, others, errors = zip(*compared, strict=True)
    whole = np.array(shares) / sum(shares)
    error = _of_sum(errors, whole.tolist())
    lengths = f"log p of {sum(shares):.1%} of its samples: decoding of the same lengths and diversity"
    note = ", ".join(dict.fromkeys(notes))
    # Of decoding one seed is enough: its error is over prompts.
    return Judged(method, lengths, float(whole @ others), float(whole @ own), error, note, alone=alone), why


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


def tells(figures: Figures, least_ess: float, condition: str, method: str, figure: str) -> bool:
    """Whether it is there and enough draws count for it: of few, weights tell nothing of lengths and entropies."""
    ess = figures.get((condition, method, ESS))
    counts = figure not in _BY_WEIGHTS or ess is None or ess.mean >= least_ess
    return counts and (condition, method, figure) in figures


def shape_read(subtb: str, figures: Figures, least_ess: float) -> Sequence[str]:
    """The best by each figure, and what submodular replay changes; `subtb` is the row that its own differs from."""
    trained = [method for _, method, figure in figures if figure == "trajectories_trained"]
    told = []
    for figure, (words, order) in _BEST.items():
        found = {
            method: figures["", method, figure].mean
            for method in trained
            if tells(figures, least_ess, "", method, figure)
        }
        best = sorted(found, key=lambda method: order(found[method]))[:_PLACES]
        if best:
            told.append(f"{words}: {'; '.join(f'{method} {found[method]:.3f}' for method in best)}")
    for figure in _BEST:
        changes = []
        for after in [method for method in trained if method.endswith(_SUBMODULAR)]:
            name = after.removesuffix(_SUBMODULAR)
            before = subtb if name == "subtb" else name
            if all(tells(figures, least_ess, "", method, figure) for method in (before, after)):
                was, now = (figures["", method, figure].mean for method in (before, after))
                changes.append(f"{before} {was:.3f} to {now:.3f}")
        if changes:
            told.append(f"{SHAPE_FIGURES[figure]}, by submodular replay: {'; '.join(changes)}")
    return [f"{each[0].upper()}{each[1:]}." for each in told]
