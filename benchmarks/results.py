"""Writes docs/results.md from the saved tables of comparisons: `python -m benchmarks.results`.

A table gets here by `python -m benchmarks.results --take comparisons/NAME`, into benchmarks/results/. Cells of another
seed can be made at another time: they come beside those that are there.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from common.config import EMSection, LearnerSection
from common.tasks.figures import on_hull
from deploy.comparison.compare import Cell, Comparison
from deploy.comparison.table import ON_TRAINING, Entry, PayOff, Table

ROOT = Path(__file__).parents[1]
TABLES, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "results.md"
COMPARISONS = ROOT / "deploy" / "comparison"

_INTRODUCTION = """# Results

Generated from the saved tables in `benchmarks/results/` by `python -m benchmarks.results`; don't edit it by hand.

Each section is one comparison in `deploy/comparison/`, run with

```console
$ amortis compare deploy/comparison/arithmetic.yaml --data FOLDER
```

on SmolLM2-135M-Instruct and CPU cores. Figures are mean ± standard error over seeds with the same test rows; one
without an error is of a single seed. What is said of the paper (Hu et al. 2024) is from GPT-J 6B, thousands of steps on
an A100 and larger test sets: only the order of methods can be compared.
"""


Figures = Mapping[tuple[str, str, str], Entry]
"""Of a comparison, by condition, method and figure."""


MATRIX = ("arithmetic", "subjectivity", "continuation", "infilling")
"""The comparisons of methods; the others are sweeps of settings."""
_LENGTH = {"steps", "trajectories_trained"}
_TRAINED = {"steps", "iterations"}
"""Figures of cells that train, of EM the second."""
_THREE, _FOUR, _FIVE = (f"test_{n}_operands.accuracy" for n in (3, 4, 5))
_TELLING = 0.1
"""Effective sample size from which on a length bias tells something."""


_SHAPE = (
    "The two failures of GFlowNet objectives on language models that RapTB (arXiv 2603.00454) tells of, by the "
    "diagnosis of 128 draws for each of {} {}: effective sample size (share of the draws); length bias (tokens, above "
    "0 too long); prefix collapse (nats of the first token's entropy that are missing); different beginnings of three "
    "tokens. Length bias and collapse are against the draws weighted by R/q: with an effective sample size of 0.05 "
    "these are 6 draws, which tell little of a length and nothing of an entropy. {} are of other draws, the "
    "evaluation's: {}."
)
_SHAPE_FIGURES = {
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


_READ = "What the figures say, of one run each:"


_TARGETS = (
    "Targets, from the paper's order of methods; ± is the standard error of the difference: over seeds, of log p of "
    "the best over prompts, and of accuracies of one seed over test rows. What is within two of them chance could make:"
)


_COSTS = "Tokens that training reads (trained ones thrice) against those of draws of the posterior without it:"


_SAID = (
    "The rationales that were drawn most for test queries, by the query's own choice, with their share of the draws. "
    "Where a method's are alike for both choices, they don't depend on the query:"
)


_CURVES = (
    "While it trained, on some of the test's queries, by step; still rising where the last third of the steps brought "
    "more than a tenth of the whole rise:"
)


@dataclass(frozen=True)
class Section:
    """How a comparison is shown."""

    name: str
    title: str
    text: str
    figures: Mapping[str, str]
    """Column titles by figure."""
    paper: str = ""
    """Markdown: the paper's numbers."""
    target: Callable[[Figures], Sequence[str]] = lambda _: ()
    """What the paper's order asks for, and whether it is met: sentences, none where a method is missing."""
    read: Callable[[Figures], Sequence[str]] = lambda _: ()
    """What else the figures say: sentences."""


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
        of_other = other.standard_error
        error = _of_difference(value.standard_error, None if of_other is None else self.factor * of_other)
        if error is None and self.rows is not None:
            error = math.hypot(_of_share(value.mean, self.rows), self.factor * _of_share(other.mean, self.rows))
        least = self.factor * other.mean + self.more
        if least > 1 and "accuracy" in self.figure:
            asked += " (above 1, which nothing reaches)"
        why = "" if value.mean >= least or _is_within_chance(value.mean - least, error) else self._why(figures, least)
        return _judged(asked, value.mean, least, error) + why

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
            said.append(f"for {above:.3f} of the problems the given rationale has more R than all that were drawn")
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


def _all_judged(targets: Sequence[Target], figures: Figures) -> list[str]:
    return [found for target in targets if (found := target.judged(figures)) is not None]


def _continuation_target(table: Figures) -> list[str]:
    points = _against_diversity(table, "max_log_reward")
    decoding = _of_decoding(points)
    # Over prompts, of which seeds share most of what is by chance; of the frontier the decoding method's that has most.
    of_prompts = {method: table.get(("", method, "max_log_reward_se")) for method in points}
    errors = {method: entry.mean for method, entry in of_prompts.items() if entry is not None}
    of_frontier = max(errors[method] for method in decoding) if decoding and decoding.keys() <= errors.keys() else None
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
            error = _of_difference(errors.get(method), of_frontier)
            judged = _judged(f"{method} at diversity {diversity:.3f}, {above}", likelihood, frontier, error)
            found.append(judged + _by_length(table, method))
    return found


def _frontier(points: Mapping[str, tuple[float, float]], diversity: float) -> float | None:
    """What methods reach at a diversity, or at their largest where that is less; None below their smallest."""
    return on_hull(list(points.values()), min(diversity, max(x for x, _ in points.values())))


def _by_length(table: Figures, method: str) -> str:
    """log p of its samples of so many tokens, held against decoding methods' of as many, at its diversity."""
    told = []
    for figure, title in _LENGTHS.items():
        points = _against_diversity(table, figure)
        decoding = _of_decoding(points)
        if method in points and decoding:
            diversity, likelihood = points[method]
            frontier = _frontier(decoding, diversity)
            if frontier is not None:
                told.append(f"{title.removeprefix('log p, ')} {likelihood:.2f} against {frontier:.2f}")
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


_LENGTHS = {f"log_reward_of_{i}_to_{i + 4}": f"log p, {i} to {i + 4} tokens" for i in (1, 6, 11, 16)}
"""Figures of continuation by length, with their titles."""
_AT_FIVE = "accuracy at 5 operands"
_ARITHMETIC = tuple(
    Target(method, _FIVE, than, _AT_FIVE, factor=factor, rows=200, like=(_THREE, _FOUR))
    for method, than, factor in (
        ("GFlowNet", "SFT", 2.0),
        ("GFlowNet", "reward maximisation (RLOO)", 1.0),
        ("GFlowNet + SFT", "SFT", 2.0),
        ("GFlowNet + SFT", "SFT", 1.0),
    )
)
_SUBJECTIVITY = tuple(
    Target(method, figure, than, words, f"{n} labels", more=more, rows=500)
    for figure, words in (
        ("accuracy_calibrated", "calibrated accuracy"),
        ("accuracy", "accuracy as the model has it"),
    )
    for method, than, more in (
        ("GFlowNet", "few-shot prompting", 0.08),
        ("GFlowNet", "SFT", 0.0),
        ("GFlowNet + SFT", "SFT", 0.0),
    )
    for n in (10, 20, 50)
)
_INFILLING = tuple(
    Target(method, figure, than, words)
    for figure, words in (("mean_log_reward", "mean log R"), ("similarity", "similarity"))
    for method, than in (("GFlowNet", "SFT"), ("SFT", "prompting"))
)


def _shape_read(subtb: str, figures: Figures) -> Sequence[str]:
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
            told.append(f"{_SHAPE_FIGURES[figure]}, by submodular replay: {'; '.join(changes)}")
    return [f"{each[0].upper()}{each[1:]}." for each in told]


SECTIONS = (
    Section(
        "arithmetic",
        "Arithmetic with a calculator",
        "Accuracy by the majority of 3 samples at temperature 0.1, on 200 test problems of each length; 50 training "
        "problems of 3 and 4 operands, so that 5 are out of distribution. All methods have the calculator, and LoRA of "
        "rank 64 in all linear layers; all that are trained have the 50 given rationales, GFlowNet and RLOO among what "
        "they replay. GFlowNet + SFT is fine-tuned first and then trained as a GFlowNet. Rank and layers were tried on "
        "20 of these problems of each length (below); objective, steps and learning rate were chosen on 25 that are "
        "not among these.",
        {
            "test_3_operands.accuracy": "3 operands",
            "test_4_operands.accuracy": "4 operands",
            "test_5_operands.accuracy": "5 operands",
        },
        "The paper's (its table 4), with 3, 4 and 5 operands: SFT 0.721, 0.196, 0.128; PPO 0.306, 0.137, 0.056; "
        "GFlowNet 0.952, 0.754, 0.407.",
        partial(_all_judged, _ARITHMETIC),
    ),
    Section(
        "arithmetic-settings",
        "Arithmetic: what the settings do",
        "Another GFlowNet than that of the section above, of rank 16, with 80 steps, on 20 of the test problems of "
        "each length with 5 samples and, but for the second row, reward temperature 1 throughout; each row differs "
        "from the first in what it says. One seed: an accuracy of 60 problems is known to ± 0.06. log R is "
        "log p(Z, Y|X) in nats, over sampled rationales.",
        {"accuracy": "accuracy", "test_5_operands.accuracy": "5 operands", "mean_log_reward": "mean log R"},
    ),
    Section(
        "subjectivity",
        "Subjectivity with few labels",
        "500 test sentences. GFlowNets take the label with the larger mean p(Y|XZ) over 16 rationales sampled at "
        "temperature 1, each distinct one counted by its probability (Horvitz and Thompson 1952); SFT and few-shot "
        "prompting give the label itself, the latter after 10 labelled sentences, drawn anew for each seed. GFlowNet + "
        "SFT is the GFlowNet, and then p(Z, Y|X) fine-tuned on its rationales of the training sentences: a step of "
        "expectation maximisation. Accuracy is as the model has it, and calibrated: for every method by prior matching "
        "(Liusie et al. 2023), one constant by which both labels are as probable over the test sentences, whose own "
        "labels it doesn't read. The area under the ROC curve is the same for both, and on the training sentences "
        "tells learning from generalising. The effective sample size is the share of the 16 rationales by which they "
        "count once weighed by p(Z|X), as nobody knows a test sentence's label. The GFlowNet's settings, its steps "
        "among them, were chosen on 300 sentences that are not among these, with 20 labels.",
        {
            "accuracy": "accuracy",
            "accuracy_calibrated": "calibrated",
            "auc": "area",
            "training.auc": "area, training",
            "corrected_ess": "effective share of 16",
        },
        "The paper's (its table 3), with 10 labels: SFT 0.643, GFlowNet 0.714, GFlowNet + SFT 0.752.",
        partial(_all_judged, _SUBJECTIVITY),
    ),
    Section(
        "subjectivity-settings",
        "Subjectivity: what the settings do",
        "Another GFlowNet than that of the section above, of rank 16 and with p(Y|XZ) as the model has it, with 20 "
        "labels and 100 steps, on 150 of the test sentences; each row differs from the first in what it says. Rows of "
        "one seed are known to ± 0.04, and the first two, of two seeds, differ by more between those: no order can be "
        "read from them. log R is log p(Z, Y|X) in nats less the penalty, 50 and in the second row 10, over sampled "
        "rationales.",
        {"accuracy": "accuracy", "mean_log_reward": "mean log R"},
    ),
    Section(
        "continuation",
        "Continuation: likelihood against diversity",
        "log p of the best of 10 samples, in nats, mean over 100 prompts that were not trained on, against 1 − the "
        "mean cosine similarity of their sentence embeddings. Up and to the right is better. Likelihood favours short "
        "texts: the last columns are means over all samples of so many tokens, where there are any.",
        {
            "max_log_reward": "log p of the best",
            "diversity": "diversity",
            "mean_actions": "mean length in tokens",
            "tokens_per_sample": "tokens read a sample",
            **_LENGTHS,
        },
        target=_continuation_target,
    ),
    Section(
        "infilling",
        "Infilling",
        "The missing fourth sentence of 12 short stories, trained on 24. log R is log p(Z, Y|X) in nats.",
        {
            "mean_log_reward": "mean log R",
            "max_log_reward": "best log R",
            "bleu": "BLEU-4",
            "similarity": "similarity",
            "diversity": "diversity",
        },
        target=partial(_all_judged, _INFILLING),
    ),
    Section(
        "continuation-shape",
        "Length bias and prefix collapse: continuation",
        _SHAPE.format(
            "8 prompts that were not trained on",
            "and of the base model at the same reward temperature, 0.7",
            "Length, log p and diversity",
            "10 for each prompt",
        ),
        _SHAPE_FIGURES,
        read=partial(_shape_read, "subtb, pairs"),
    ),
    Section(
        "arithmetic-shape",
        "Length bias and prefix collapse: arithmetic",
        _SHAPE.format(
            "8 sums of three numbers that were not trained on",
            "and of the base model",
            "Length, log R and accuracy",
            "5 for each sum, at temperature 0.1",
        ),
        {**_SHAPE_FIGURES, "accuracy": "accuracy"},
        read=partial(_shape_read, "subtb, trajectory"),
    ),
)


def page() -> str:
    """The whole page, Markdown."""
    tables = {
        section.name: json.loads((TABLES / section.name / "table.json").read_text(encoding="utf-8"))
        for section in SECTIONS
        if (TABLES / section.name / "table.json").is_file()
    }
    shown = [_section(section, tables[section.name]) for section in SECTIONS if section.name in tables]
    return "\n".join([_INTRODUCTION, _whole_time(tables), *shown])


def _section(section: Section, table: Mapping[str, Any]) -> str:
    made = json.loads((TABLES / section.name / "made.json").read_text(encoding="utf-8"))
    entries = [
        Entry(item["condition"], item["method"], item["figure"], tuple(item["values"]), tuple(item["seeds"]))
        for item in table["entries"]
    ]
    lines = [f"## {section.title}\n", f"{section.text}\n", *_rows(section, entries), ""]
    comparison = Comparison.load([COMPARISONS / f"{section.name}.yaml"], seeds=None, data=None, overrides=())
    asked = comparison.file.seeds
    cells = [cell for cell in comparison.cells(TABLES) if cell.seed == asked[0]]
    lines.append(f"{_budget(cells, table['measured'])}\n")
    missing = _not_run(cells, table["measured"])
    if missing:
        lines.append(f"Not run yet: {'; '.join(missing)}.\n")
    if section.paper:
        lines.append(f"{section.paper}\n")
    figures = {(entry.condition, entry.method, entry.figure): entry for entry in entries}
    told = section.read(figures)
    if told:
        lines += [f"{_READ}\n", *(f"- {each}" for each in told), ""]
    targets = section.target(figures)
    if targets:
        lines += [f"{_TARGETS}\n", *(f"- {target}" for target in targets), ""]
    costs = [PayOff(**item).shown() for item in table.get("pay_offs", ())]
    if costs:
        lines += [f"{_COSTS}\n", *(f"- {cost}." for cost in costs), ""]
    said = _said(table["measured"])
    if said:
        lines += [f"{_SAID}\n", *(f"- {each}" for each in said), ""]
    curves = _curves(section, table["measured"])
    if curves:
        lines += [f"{_CURVES}\n", *(f"- {curve}" for curve in curves), ""]
    seeds, left = _seeds(entries), [seed for seed in asked if not any(seed in entry.seeds for entry in entries)]
    more = f" ({', '.join(map(str, left))} not yet)" if left else ""
    lines.append(f"Made on {made['cores']} cores, seeds {seeds}{more}. {_time(table['measured'])}\n")
    lines.append(f"![{section.title}](../benchmarks/results/{section.name}/comparison.png)\n")
    return "\n".join(lines)


def _said(measured: Sequence[Mapping[str, Any]]) -> list[str]:
    """The rationales that each method drew most, of its first seed."""
    first: dict[tuple[str, str], Mapping[str, Any]] = {}
    for item in sorted(measured, key=lambda item: int(item["seed"])):
        if item.get("drawn"):
            first.setdefault((item["condition"], item["method"]), item)
    told = []
    for condition, method in dict.fromkeys((item["condition"], item["method"]) for item in measured):
        item = first.get((condition, method))
        if item is not None:
            where = f" with {condition}" if condition else ""
            parts = [
                f"of “{choice.strip()}” {', '.join(f'“{text.strip()}” {share:.2f}' for text, share in texts)}"
                for choice, texts in item["drawn"].items()
            ]
            told.append(f"{method}{where}, seed {item['seed']}: {'; '.join(parts)}.")
    return told


def _curves(section: Section, measured: Sequence[Mapping[str, Any]]) -> list[str]:
    """Held-out figures while each method trained, means over the seeds that looked at the same steps."""
    found: dict[tuple[str, str, str], list[Sequence[Sequence[float]]]] = {}
    for item in measured:
        curves = item.get("curve", {})
        # Of several test files together, where the columns are of each.
        for figure in [figure for figure in curves if figure in section.figures] or curves:
            found.setdefault((item["condition"], item["method"], figure), []).append(curves[figure])
    told = []
    for (condition, method, figure), of_seeds in found.items():
        looks: dict[int, list[float]] = {}
        for step, value in (look for curve in of_seeds for look in curve):
            looks.setdefault(int(step), []).append(value)
        points = [
            (step, float(np.mean(values))) for step, values in sorted(looks.items()) if len(values) == len(of_seeds)
        ]
        values = ", ".join(f"{value:.3f} at {step}" for step, value in points)
        where = f" with {condition}" if condition else ""
        rises = ", **still rising**" if _still_rises(points) else ""
        falls = ", **fell**" if points and points[-1][1] < points[0][1] else ""
        told.append(f"{method}{where}, {section.figures.get(figure, figure)}: {values}{rises}{falls}.")
    return told


def _still_rises(points: Sequence[tuple[int, float]]) -> bool:
    """Whether the last third of the steps brought more than a tenth of the whole rise."""
    if len(points) < 3:
        return False
    steps, values = zip(*points, strict=True)
    late = values[-1] - float(np.interp(2 / 3 * steps[-1], steps, values))
    return late > 0.1 * max(values[-1] - values[0], 0.0) and late > 0


@dataclass
class _Shared:
    """Cells that ran so many at a time."""

    cells: int = 0
    seconds: float = 0.0
    """Of the machine, not of a cell."""
    longest_s: float | None = None
    """Of the cells that train."""


def _shares(measured: Sequence[Mapping[str, Any]]) -> dict[int, _Shared]:
    """What the cells took, by how many ran at a time."""
    cells: dict[tuple[str, str, int], list[Mapping[str, Any]]] = {}
    for item in measured:
        cells.setdefault((item["condition"], item["cell"], item["seed"]), []).append(item)
    found: dict[int, _Shared] = {}
    for rows in cells.values():
        seconds, parallel = rows[0]["seconds"], rows[0]["parallel"]
        share = found.setdefault(parallel, _Shared())
        share.cells += 1
        share.seconds += seconds / parallel
        if any(_TRAINED & row["figures"].keys() for row in rows):
            share.longest_s = max(share.longest_s or 0.0, seconds)
    return dict(sorted(found.items()))


def _time(measured: Sequence[Mapping[str, Any]]) -> str:
    found = []
    for parallel, share in _shares(measured).items():
        how = "one at a time" if parallel == 1 else f"{parallel} at a time on the same cores"
        longest = "" if share.longest_s is None else f", the longest that trains {share.longest_s / 60:.1f} min"
        found.append(f"{share.cells} cells, {how}: {share.seconds / 3600:.1f} h{longest}.")
    return " ".join(found)


def _whole_time(tables: Mapping[str, Mapping[str, Any]]) -> str:
    shares = [share for name in MATRIX if name in tables for share in _shares(tables[name]["measured"]).values()]
    cells, hours = sum(share.cells for share in shares), sum(share.seconds for share in shares) / 3600
    names = ", ".join(name for name in MATRIX if name in tables)
    return f"The {cells} cells of {names} took {hours:.2f} h of the machine in all.\n"


def _not_run(cells: Sequence[Cell], measured: Sequence[Mapping[str, Any]]) -> list[str]:
    """Methods that a comparison asks for and its table has nothing of, by condition."""
    run = {(item["condition"], item["cell"] or item["method"]) for item in measured}
    missing: dict[str, list[str]] = {}
    for cell in cells:
        if (cell.condition, cell.method) not in run:
            missing.setdefault(cell.condition, []).append(f"*{cell.method}*")
    return [f"{f'with {condition} ' if condition else ''}{', '.join(each)}" for condition, each in missing.items()]


def _budget(cells: Sequence[Cell], measured: Sequence[Mapping[str, Any]]) -> str:
    """How long each method was trained, in a sentence; of expectation maximisation by its settings."""
    methods, trained = {cell.name: cell.method for cell in cells}, []
    for cell in {cell.method: cell for cell in cells}.values():
        found = [item["figures"] for item in measured if item["method"] == cell.method]
        learner = LearnerSection.model_validate(cell.settings.get("learner", {}))
        em = EMSection.model_validate(cell.settings.get("em", {}))
        each = [figures["trajectories_trained"] / figures["steps"] for figures in found if figures.keys() >= _LENGTH]
        if em.iterations and found:
            steps = f"{learner.steps} and {em.m_steps} of an M step"
        elif each:
            steps = f"{found[0]['steps']:.0f} of {np.mean(each):.3g}"
        else:
            continue
        after = "" if cell.after is None else f" from {methods[cell.after]}'s adapter on"
        trained.append(f"{cell.method} {steps}{after}")
    return f"Steps, and trajectories a step on the mean: {'; '.join(trained)}."


def _rows(section: Section, entries: Sequence[Entry]) -> list[str]:
    cells = {
        (entry.condition, entry.method, entry.figure): entry for entry in entries if entry.figure in section.figures
    }
    rows = list(dict.fromkeys((condition, method) for condition, method, _ in cells))
    order = list(dict.fromkeys(condition for condition, _ in rows))
    # Cells that came later stand with those of their condition.
    rows.sort(key=lambda row: order.index(row[0]))
    conditions = any(order)
    measured = {figure for *_, figure in cells}
    figures = {figure: title for figure, title in section.figures.items() if figure in measured}
    head = [*(["condition"] if conditions else []), "method", *figures.values()]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    most = max((len(entry.seeds) for entry in cells.values()), default=0)
    for condition, method in rows:
        found = [cells.get((condition, method, figure)) for figure in figures]
        n = max(len(entry.seeds) for entry in found if entry is not None)
        name = method if n == most else f"{method} ({n} {'seed' if n == 1 else 'seeds'})"
        values = ["-" if entry is None else entry.shown() for entry in found]
        lines.append(f"| {' | '.join([*([condition] if conditions else []), name, *values])} |")
    return lines


def _seeds(entries: Sequence[Entry]) -> str:
    return ", ".join(map(str, sorted({seed for entry in entries for seed in entry.seeds})))


def take(folder: Path) -> None:
    """Take a comparison's cells in, beside those of other seeds, and note the machine that they were made on."""
    target = TABLES / folder.name
    target.mkdir(parents=True, exist_ok=True)
    table = Table.from_json((folder / "table.json").read_text(encoding="utf-8"))
    saved = target / "table.json"
    if saved.is_file():
        table = Table.from_json(saved.read_text(encoding="utf-8")).updated(table)
    table.save(target)
    made = {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }
    (target / "made.json").write_text(json.dumps(made) + "\n", encoding="utf-8")


def main() -> None:
    """Take tables in if there are any, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--take", type=Path, nargs="*", default=[], metavar="FOLDER", help="folders of comparisons")
    options = parser.parse_args()
    for folder in options.take:
        take(folder)
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
