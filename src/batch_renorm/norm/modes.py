"""Settings of all layers of a model at once: the limits and their ramp, and the statistics of an evaluation."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from batch_renorm.norm.functional import check_options
from batch_renorm.norm.layers import BatchRenorm, layers_of


def set_limits(model: nn.Module | Iterable[BatchRenorm], rmax: float, dmax: float) -> int:
    """Sets the bounds of r and d in every BatchRenorm layer of a model, or in given layers; call it once a step.

    The layers of a device share one small tensor, filled without waiting; a CUDA graph that reads it stays valid.
    Returns the number of layers. ValueError: rmax below 1, dmax below 0, or a model without BatchRenorm layers.
    """
    check_options(rmax, dmax)
    layers = list(layers_of(model).values() if isinstance(model, nn.Module) else model)
    by_device: dict[torch.device, list[BatchRenorm]] = {}
    for layer in layers:
        by_device.setdefault(layer.limits.device, []).append(layer)
    for some in by_device.values():
        shared = some[0].limits
        if getattr(shared, "layers", 0) != len(some) or any(layer.limits is not shared for layer in some):
            shared = torch.empty_like(shared)
            shared.layers = len(some)  # type: ignore[attr-defined]  # only a call for all of these layers may refill it
            for layer in some:
                layer.__dict__["limits"] = shared  # nn.Module's __setattr__ costs as much as four operations
        with torch.inference_mode(shared.is_inference()):
            shared[0].fill_(rmax)
            shared[1].fill_(dmax)
    return len(layers)


def batch_statistics(model: nn.Module, group_size: int | None = None) -> AbstractContextManager[None]:
    """Context in which layers in evaluation normalise with muB and sigmaB, as in figure 3.

    They are those of ``group_size`` consecutive examples, or of the whole batch. Nothing is updated.
    """
    return _every_layer(model, batch_statistics=group_size or 0)


def training_normalization(model: nn.Module) -> AbstractContextManager[None]:
    """Context in which layers normalise as in training, in groups, with r and d; mu, sigma and other modules stay."""
    return _every_layer(model, training=True, track_running_stats=False)


@contextmanager
def _every_layer(model: nn.Module, **attributes: Any) -> Iterator[None]:
    layers = layers_of(model).values()
    before = [{name: getattr(layer, name) for name in attributes} for layer in layers]
    try:
        for layer in layers:
            vars(layer).update(attributes)
        yield
    finally:
        for layer, values in zip(layers, before, strict=True):
            vars(layer).update(values)


@dataclass(frozen=True)
class Ramp:
    """The bounds of r and d as functions of the step.

    Until ``start`` they are batchnorm's (1, 0). Then both grow linearly: rmax reaches its final value
    at ``rmax_end``, dmax at ``dmax_end``. ValueError: a ramp out of order, or final values below (1, 0).

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
        of_rmax, of_dmax = self._progress(step, self.rmax_end), self._progress(step, self.dmax_end)
        # before the start also for infinite bounds, of which 0 times is NaN
        return 1.0 + (self.rmax - 1.0) * of_rmax if of_rmax else 1.0, self.dmax * of_dmax if of_dmax else 0.0

    def _progress(self, step: float, end: float) -> float:
        return (step - self.start) / (end - self.start) if self.start < step < end else float(step >= end)
