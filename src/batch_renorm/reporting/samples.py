"""One number per seed: mean, spread and the mean's interval."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import sqrt
from statistics import fmean, stdev


@dataclass(frozen=True)
class Sample:
    """One number per seed."""

    values: tuple[float, ...]

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float:
        return fmean(self.values)

    @property
    def std(self) -> float | None:
        """The sample standard deviation (n - 1); None for one seed."""
        return stdev(self.values) if self.n > 1 else None

    @property
    def range(self) -> tuple[float, float]:
        return min(self.values), max(self.values)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The mean's two-sided 95% t-interval; None for one seed."""
        if self.std is None:
            return None
        half = t_quantile(self.n - 1) * self.std / sqrt(self.n)
        return self.mean - half, self.mean + half


@lru_cache
def t_quantile(freedom: int) -> float:
    """The 97.5% quantile of Student's t."""
    from scipy.stats import t  # takes half a second to import, and one seed needs none

    return float(t.ppf(0.975, freedom))
