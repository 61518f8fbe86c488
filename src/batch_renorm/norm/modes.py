"""Settings of all layers of a model at once: the limits, and the statistics that an evaluation uses."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from batch_renorm.norm.functional import check_limits
from batch_renorm.norm.layers import BatchRenorm, fill_limits, layers_of, limits_tensor


def set_limits(model: nn.Module | Iterable[BatchRenorm], rmax: float, dmax: float) -> int:
    """Sets the bounds of r and d in every BatchRenorm layer of a model, or in given layers; call it once a step.

    The layers of a device share one small tensor, filled on the device without waiting. The second and later
    calls for the same layers reuse the tensor, so a CUDA graph that reads it stays valid.
    Finding the layers of a model takes longer than setting them.

    Returns:
        The number of layers set.

    Raises:
        ValueError: rmax below 1, dmax below 0, or a model without BatchRenorm layers.

    Example::

        >>> set_limits(model, *ramp(step))
    """
    check_limits(rmax, dmax)
    layers = list(layers_of(model).values() if isinstance(model, nn.Module) else model)
    by_device: dict[torch.device, list[BatchRenorm]] = {}
    for layer in layers:
        by_device.setdefault(layer.limits.device, []).append(layer)
    for device, some in by_device.items():
        shared = some[0].limits
        if getattr(shared, "layers", 0) == len(some) and all(layer.limits is shared for layer in some):
            fill_limits(shared, rmax, dmax)
            continue
        shared = limits_tensor(rmax, dmax, device)
        shared.layers = len(some)  # type: ignore[attr-defined]  # only a call for all of these layers may refill it
        for layer in some:
            layer.__dict__["limits"] = shared  # nn.Module's __setattr__ costs as much as four operations
    return len(layers)


@contextmanager
def batch_statistics(model: nn.Module, group_size: int | None = None) -> Iterator[None]:
    """Context in which layers in evaluation mode normalise with muB and sigmaB of the current examples.

    This is the paper's diagnosis in figure 3: how good the same model is with the kind of statistics
    that it was trained with. Nothing is updated; layers in training mode do not change.

    Args:
        group_size: number of consecutive examples normalised together. Default: the whole batch.
    """
    layers = layers_of(model).values()
    before = [layer.batch_statistics for layer in layers]
    try:
        for layer in layers:
            layer.batch_statistics = group_size or 0
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer.batch_statistics = value


@contextmanager
def training_normalization(model: nn.Module) -> Iterator[None]:
    """Context in which layers normalise as in training: in groups, with muB and sigmaB, and r and d within the limits.

    Nothing is updated, and the rest of the model keeps its mode. An evaluation then sees the
    activations of training.
    """
    layers = layers_of(model).values()
    before = [(layer.training, layer.deferred) for layer in layers]
    try:
        for layer in layers:
            layer.training, layer.deferred = True, _NoUpdate()
        yield
    finally:
        for layer, (training, deferred) in zip(layers, before, strict=True):
            layer.training, layer.deferred = training, deferred


class _NoUpdate:
    """Discards a layer's group statistics."""

    def add(self, layer: BatchRenorm, mu_b: Tensor, sigma_b: Tensor) -> None: ...

    def to(self, device: torch.device) -> None: ...
