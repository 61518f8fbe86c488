"""The ramp of the paper: from the step to the bounds of r and d."""

from dataclasses import dataclass

import torch
from torch import Tensor

from batch_renorm.norm.algorithm1 import can_read_values
from batch_renorm.norm.functional import check_options


@dataclass(frozen=True)
class Ramp:
    """The bounds of r and d as functions of the step.

    Until ``start`` they are batchnorm's (1, 0). Then both grow linearly: rmax reaches its final value
    at ``rmax_end``, dmax at ``dmax_end``. A final value of inf, no bound, holds as soon as growth starts.
    ValueError: a ramp out of order, or final values below (1, 0).

    Example: the paper's, of 140,000 steps::

        >>> ramp = Ramp(start=5000, rmax_end=40000, dmax_end=25000)
        >>> ramp(0), ramp(22500), ramp(140000)
        ((1.0, 0.0), (2.0, 4.375), (3.0, 5.0))
    """

    start: float
    rmax_end: float
    dmax_end: float
    rmax: float = 3.0
    dmax: float = 5.0

    def __post_init__(self) -> None:
        if not (0 <= self.start <= self.rmax_end and self.start <= self.dmax_end):
            got = f"rmax_end={self.rmax_end}, dmax_end={self.dmax_end}, start={self.start}"
            raise ValueError(f"a ramp needs 0 <= start <= rmax_end and dmax_end, got {got}")
        check_options(self.rmax, self.dmax)

    @classmethod
    def of_length(
        cls, steps: int, start: float = 5 / 140, rmax_end: float = 40 / 140, dmax_end: float = 25 / 140, **bounds
    ) -> "Ramp":
        """The paper's ramp for a run of ``steps`` steps: its knees are fractions of the run; bounds: rmax and dmax."""
        # Multiplying first gives whole steps for the paper's length, not 39999.99...
        start, rmax_end, dmax_end = (round(steps * knee, 6) for knee in (start, rmax_end, dmax_end))
        return cls(start, rmax_end, dmax_end, **bounds)

    def __call__(self, step: float) -> tuple[float, float]:
        """``(rmax, dmax)`` of a step."""
        r, d = self._progress(step, self.rmax_end), self._progress(step, self.dmax_end)
        return 1.0 + (self.rmax - 1.0) * r if r else 1.0, self.dmax * d if d else 0.0  # inf * 0 is undefined

    def _progress(self, step: float, end: float) -> float:
        return (step - self.start) / (end - self.start) if self.start < step < end else float(step >= end)

    def of_tensor(self, step: Tensor) -> Tensor:
        """rmax and dmax, (2) float32, of a step in a tensor of integers, without waiting for its device."""
        if can_read_values(step):
            return torch.tensor(self(step.item()), dtype=torch.float32)
        step = step.to(torch.float32 if step.device.type == "mps" else torch.float64)
        bounds = []
        for low, high, end in ((1.0, self.rmax, self.rmax_end), (0.0, self.dmax, self.dmax_end)):
            progress = ((step - self.start) / (end - self.start)).clamp(0, 1) if end > self.start else (step >= end) * 1
            bounds.append(torch.where(progress > 0, low + (high - low) * progress, low))
        return torch.stack(bounds).float()
