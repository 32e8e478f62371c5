"""`learner.stop_when`: the rule by which training ends before its last step, such as "ess >= 0.5 for 3 diagnoses".

    RULE   = FIGURE OPERATOR NUMBER [for N diagnoses | for N evaluations]
    FIGURE = one of a diagnosis', or eval/NAME for one of the evaluation while it trains

It is read by one regular expression: nothing of it is ever run as code.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from common.errors import UserError
from common.held_out import DIAGNOSIS_PREFIX, EVALUATION_PREFIX, Part

DIAGNOSED = (
    "ess",
    "ess_mean",
    "pareto_k",
    "log_z",
    "log_z_se",
    "elbo",
    "length_bias",
    "distinct_prefixes",
)
"""Figures of a diagnosis while it trains, in metrics.jsonl as `diagnose/NAME`."""
OF_WEIGHTS = ("ess", "ess_mean", "pareto_k", "log_z_se")
"""Those that a sampler which has collapsed onto few rationales has at their best, as all its weights are equal."""
NARROW = "narrow_queries"
"""In a line of metrics.jsonl: how many of the diagnosed queries have one rationale alone, nearly."""
HIDDEN = "hidden_queries"
"""In a line of metrics.jsonl: how many of the diagnosed queries have a log Z known to lie above its estimate."""
_FIELD = "learner.stop_when"
_EXAMPLE = 'write it as in "ess >= 0.5 for 3 diagnoses" or "eval/accuracy > 0.9"'
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_RULE = re.compile(
    r"(?P<figure>[\w./-]+)\s*(?P<operator>>=|<=|>|<)\s*(?P<bound>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"
    r"(?:\s+for\s+(?P<times>\d{1,9})\s+(?P<counted>diagnos[ei]s|evaluations?))?"
)


@dataclass(frozen=True)
class StopRule:
    """A figure's bound, and how many diagnoses or evaluations in a row it must hold in."""

    text: str
    """As it was given."""
    figure: str
    operator: str
    bound: float
    times: int = 1

    @classmethod
    def parse(cls, text: str) -> StopRule:
        """Read a rule; raises UserError naming what is wrong with it."""
        found = _RULE.fullmatch(text.strip())
        if found is None:
            raise UserError(_FIELD, text, "is no FIGURE (>=|<=|>|<) NUMBER [for N diagnoses]", _EXAMPLE)
        figure, counted = found["figure"], found["counted"]
        times = int(found["times"] or 1)
        if not figure.startswith(EVALUATION_PREFIX) and figure not in DIAGNOSED:
            known = f"{', '.join(DIAGNOSED)}, or {EVALUATION_PREFIX}NAME for a figure of the evaluation"
            raise UserError(_FIELD, text, f"a diagnosis has no figure {figure!r}", f"choose one of {known}")
        if figure == EVALUATION_PREFIX:
            raise UserError(_FIELD, text, f"{EVALUATION_PREFIX} is followed by no name", _EXAMPLE)
        bound = float(found["bound"])
        if not math.isfinite(bound):
            raise UserError(_FIELD, text, f"{found['bound']} is too large a number", _EXAMPLE)
        if figure in ("ess", "ess_mean") and not 0 <= bound <= 1:
            raise UserError(_FIELD, text, f"{figure} is a share of the draws, from 0 to 1", _EXAMPLE)
        if times < 1:
            raise UserError(_FIELD, text, "would hold from the start", "let it hold for 1 or more")
        rule = cls(text.strip(), figure, found["operator"], bound, times)
        if counted is not None and not rule.unit.startswith(counted[:4]):
            raise UserError(_FIELD, text, f"{figure} is a figure of {rule.unit}", f"write for {times} {rule.unit}")
        return rule

    @property
    def part(self) -> Part:
        """What its figure comes from."""
        return Part.EVALUATION if self.figure.startswith(EVALUATION_PREFIX) else Part.DIAGNOSIS

    @property
    def unit(self) -> str:
        """What is counted."""
        return "evaluations" if self.part is Part.EVALUATION else "diagnoses"

    @property
    def name(self) -> str:
        """Of its figure in metrics.jsonl."""
        return self.figure if self.part is Part.EVALUATION else DIAGNOSIS_PREFIX + self.figure

    def check_among(self, figures: Iterable[str]) -> None:
        """Raises UserError where its figure is one of an evaluation that has only others."""
        known = sorted(EVALUATION_PREFIX + name for name in figures)
        if self.part is Part.EVALUATION and self.figure not in known:
            remedy = f"choose one of {', '.join(known)}; exact figures are there with learner.evaluate_every alone"
            raise UserError(_FIELD, self.text, f"{self.figure} is no figure of this evaluation", remedy)

    def holds(self, value: float | None) -> bool:
        """Whether a value is within the bound; a figure that could not be had, or is no number, never is."""
        return value is not None and not math.isnan(value) and _COMPARE[self.operator](value, self.bound)


class StopCount:
    """How often in a row a rule held, by the lines of metrics.jsonl in their order.

    A diagnosis or an evaluation that was left out says nothing: it neither counts nor begins the count anew. One with a
    query nearly all of whose draws are one rationale, or whose log Z is below what is known of it, is no success by its
    weights, whatever they are.
    """

    def __init__(self, rule: StopRule) -> None:
        self.rule = rule
        self._held: list[tuple[int, float]] = []

    def take(self, row: Mapping[str, Any]) -> None:
        """Count one line, if it is of what the rule speaks of."""
        rule = self.rule
        if not any(name.startswith(rule.part.prefix) for name in row) or row.get(rule.part.left_out) is not None:
            return
        value = row.get(rule.name)
        if rule.holds(value) and not (rule.figure in OF_WEIGHTS and (row.get(NARROW) or row.get(HIDDEN))):
            self._held.append((int(row["step"]), float(value)))  # type: ignore[arg-type]
        else:
            self._held.clear()

    def __str__(self) -> str:
        """How far it is, for a display."""
        return f"{self.rule.text}: held {min(len(self._held), self.rule.times)} of {self.rule.times}"

    @property
    def reason(self) -> str | None:
        """Why training ends now, in words; None if it goes on."""
        rule = self.rule
        if len(self._held) < rule.times:
            return None
        last = self._held[-rule.times :]
        values = ", ".join(f"{value:.4g} at step {step}" for step, value in last)
        return f"{_FIELD} = {rule.text!r} is fulfilled: {rule.figure} was {values}"
