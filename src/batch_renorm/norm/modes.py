"""Settings of all layers of a model at once: the limits, and the statistics of an evaluation."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from batch_renorm.norm.base import BatchRenorm
from batch_renorm.norm.functional import check_options
from batch_renorm.norm.layers import layers_of


def set_limits(model: nn.Module | Iterable[BatchRenorm], rmax: float, dmax: float) -> int:
    """Sets the bounds of r and d in every BatchRenorm layer of a model, or in given layers; call it once a step.

    A ramp of the layers' own ends. The bounds are filled in place without waiting: a CUDA graph that reads them stays
    valid. Returns the number of layers.
    Raises ValueError for an rmax below 1, a dmax below 0, or a model without BatchRenorm layers.
    """
    check_options(rmax, dmax)
    layers = list(layers_of(model).values() if isinstance(model, nn.Module) else model)
    by_device: dict[torch.device, list[Tensor]] = {}
    for layer in layers:
        vars(layer)["ramp"] = None  # nn.Module's __setattr__ takes much longer
        by_device.setdefault(layer.fixed_limits.device, []).append(layer.fixed_limits)
    for device, limits in by_device.items():
        values = torch.stack([torch.full((), value, dtype=torch.float32, device=device) for value in (rmax, dmax)])
        torch._foreach_copy_(limits, [values] * len(limits))
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
