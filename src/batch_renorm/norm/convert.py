"""nn.BatchNorm to Batch Renormalization in any model, and back.

Departure from ``SyncBatchNorm.convert_sync_batchnorm``: a subclass with its own forward keeps
working (timm's norm-and-activation layers) or is an error. It is never replaced by a layer that
does less.
"""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from batch_renorm.norm.layers import BatchRenorm, BatchRenorm1d, BatchRenorm2d, BatchRenorm3d, BatchRenormNd

Model = TypeVar("Model", bound=nn.Module)

PLAIN: dict[type[nn.Module], type[BatchRenorm]] = {
    nn.BatchNorm1d: BatchRenorm1d,
    nn.BatchNorm2d: BatchRenorm2d,
    nn.BatchNorm3d: BatchRenorm3d,
    nn.SyncBatchNorm: BatchRenormNd,
}


def convert_batchnorm(model: nn.Module, **options) -> nn.Module:
    """Replaces every batchnorm of a model by Batch Renormalization of the same kind.

    It converts ``nn.BatchNorm1d/2d/3d``, ``nn.SyncBatchNorm`` (each rank then normalises its own
    batch) and timm's batchnorm-and-activation layers. Parameters stay the same objects, so an
    optimiser that holds them keeps working. eps and the inference output stay the same. momentum
    (default: the paper's alpha, 0.01) and hooks are not kept. BatchRenorm layers stay as they are.

    Args:
        model: changed in place, unless it is a batchnorm itself.
        **options: for every layer, as in :class:`BatchRenorm2d`, for instance ``scale=False``,
            ``group_size=4``.

    Returns:
        The model, or the new layer if the model is a batchnorm itself.

    Raises:
        ValueError: a layer, given by name, cannot be converted: gamma not 1 with ``scale=False``,
            beta not 0 with ``center=False``, no running statistics, not yet initialised.
        TypeError: an unknown subclass of batchnorm.
    """

    def convert(module: nn.Module, name: str) -> nn.Module | None:
        if isinstance(module, _BatchNorm) and not isinstance(module, BatchRenorm):
            return _renorm(module, name, options)
        return None

    return _replace(model, convert)


def to_batchnorm(model: nn.Module) -> nn.Module:
    """Folds every Batch Renormalization into the plain batchnorm with equal inference outputs.

    The weights then load into the stock model: a missing gamma or beta becomes 1 or 0, and a timm
    layer that :func:`convert_batchnorm` converted becomes a timm layer again. The new layers share
    their tensors with the old.

    Args:
        model: changed in place, unless it is a BatchRenorm layer itself.

    Returns:
        The model, or the new layer if the model is a BatchRenorm layer itself.
    """

    def convert(module: nn.Module, name: str) -> nn.Module | None:
        return module.as_batchnorm() if isinstance(module, BatchRenorm) else None

    return _replace(model, convert)


@torch.no_grad()
def _renorm(module: _BatchNorm, name: str, options: dict) -> BatchRenorm:
    plain = _plain(type(module))
    where = f"layer {name!r}" if name else "the model"
    if any(is_lazy(parameter) for parameter in module.parameters()):
        raise ValueError(f"{where} is not initialised yet: run the model once before converting")
    if plain is None:
        raise TypeError(
            f"{where} is a {type(module).__name__}, a batchnorm with a forward of its own: "
            "replace it by hand before converting"
        )
    mean, var = module.running_mean, module.running_var
    if mean is None or var is None:
        raise ValueError(f"{where} has no running statistics: it normalises with the batch in evaluation too")
    _check_droppable(where, module.weight, 1, "gamma", "scale", options)
    _check_droppable(where, module.bias, 0, "beta", "center", options)
    layer_options = {"eps": module.eps, "affine": module.affine, "device": mean.device, **options}
    if mean.dtype == torch.float64:
        layer_options.setdefault("dtype", torch.float64)
    if plain.forward is type(module).forward:
        layer = PLAIN[plain](module.num_features, **layer_options)
        layer.folds_into = type(module)
    else:
        from batch_renorm.norm.timm_layers import BatchRenormAct2d  # here because not everybody has timm

        layer = BatchRenormAct2d(module.num_features, source=module, **layer_options)
    if layer.weight is not None and module.weight is not None:
        layer.weight = module.weight
    if layer.bias is not None and module.bias is not None:
        layer.bias = module.bias
    layer.mu = mean
    layer.running_var.copy_((var + (module.eps - layer.eps)).clamp_min(0))
    layer.num_batches_tracked.copy_(module.num_batches_tracked)  # type: ignore[arg-type]
    layer.track_running_stats = module.track_running_stats  # False if a tool has frozen it
    return layer.train(module.training)


def _check_droppable(where, parameter, value, name, option, options) -> None:
    dropped = not (options.get(option, True) and options.get("affine", True))
    if dropped and parameter is not None and not bool((parameter == value).all()):
        raise ValueError(
            f"{where}: {option}=False drops a {name} that is not {value}: set it to {value} "
            f"first, or convert with {option}=True"
        )


def _plain(cls: type[nn.Module]) -> type[nn.Module] | None:
    """The torch class that a batchnorm class is equivalent to, apart from timm's drop and activation."""
    for base in cls.__mro__:
        if base in PLAIN:
            known = base.forward is cls.forward or cls.__module__.startswith("timm.layers.")
            return base if known else None
    return None


def _replace(model: nn.Module, convert: Callable[[nn.Module, str], nn.Module | None]) -> nn.Module:
    """Replaces every module for which ``convert`` returns a new one; shared modules stay shared."""
    # Makes all new modules before placing the first: an error leaves the model unchanged.
    made: dict[nn.Module, nn.Module] = {}
    for name, module in model.named_modules():
        new = convert(module, name)
        if new is not None:
            made[module] = new
    for parent in list(model.modules()):
        if parent in made:
            continue
        for name, child in parent._modules.items():
            if child in made:
                parent._modules[name] = made[child]
    return made.get(model, model)
