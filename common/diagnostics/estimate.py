"""A number with its standard error."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from common.diagnostics.importance import Floats


@dataclass(frozen=True)
class Estimate:
    """An estimate from draws that are independent, and how far it may be off."""

    value: float
    se: float
    """Standard error."""
    degrees: int | None = None
    """Of freedom, where the error comes from few parts: the interval is Student's then, and else the normal one."""

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Low and high end of what covers the true value with probability `level`."""
        upper = (1.0 + level) / 2.0
        if self.degrees is None:
            reach = NormalDist().inv_cdf(upper)
        else:
            from scipy.special import stdtrit  # SciPy's import takes a second

            reach = float(stdtrit(self.degrees, upper))
        return self.value - reach * self.se, self.value + reach * self.se


def mean_of(values: Floats, *, student: bool = False) -> Estimate:
    """The mean of independent values, shape (n,) with n ≥ 2; `student` for few."""
    n = len(values)
    return Estimate(float(values.mean()), float(values.std(ddof=1)) / n**0.5, n - 1 if student else None)


def of_influence(value: float, influence: Floats) -> Estimate:
    """A smooth function of means over n draws by the delta method: what each draw adds to it to first order, times n,
    is its influence; shape (n,)."""
    return Estimate(value, float(np.std(influence, ddof=1)) / len(influence) ** 0.5)
