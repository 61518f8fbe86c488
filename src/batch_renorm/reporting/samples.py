"""One number per seed: mean, spread and the mean's interval."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev
from typing import Self


@dataclass(frozen=True)
class Sample:
    """One number per seed."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float]) -> Self | None:
        """None without values."""
        values = tuple(values)
        return cls(values) if values else None

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
        from scipy.stats import t  # takes half a second to import, and one seed needs none

        half = float(t.ppf(0.975, self.n - 1)) * self.std / sqrt(self.n)
        return self.mean - half, self.mean + half
