"""Settings of all layers of a model at once: the limits, and the statistics of an evaluation."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn

from batch_renorm.norm.functional import check_options
from batch_renorm.norm.layers import BatchRenorm, layers_of


def set_limits(model: nn.Module | Iterable[BatchRenorm], rmax: float, dmax: float) -> int:
    """Sets the bounds of r and d in every BatchRenorm layer of a model, or in given layers; call it once a step.

    A ramp of the layers' own ends. The layers of a device share one small tensor, filled without waiting; a CUDA
    graph that reads it stays valid.
    Returns the number of layers. ValueError: rmax below 1, dmax below 0, or a model without BatchRenorm layers.
    """
    check_options(rmax, dmax)
    layers = list(layers_of(model).values() if isinstance(model, nn.Module) else model)
    by_device: dict[torch.device, list[BatchRenorm]] = {}
    for layer in layers:
        by_device.setdefault(layer.fixed_limits.device, []).append(layer)
    for some in by_device.values():
        shared = some[0].fixed_limits
        if getattr(shared, "layers", 0) != len(some) or any(layer.limits is not shared for layer in some):
            shared = torch.empty_like(shared)
            shared.layers = len(some)  # type: ignore[attr-defined]  # only a call for all of these layers may refill it
            for layer in some:
                vars(layer).update(fixed_limits=shared, ramp=None)  # nn.Module's __setattr__ takes much longer
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
