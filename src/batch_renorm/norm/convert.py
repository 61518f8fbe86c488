"""nn.BatchNorm to Batch Renormalization in any model, and back.

Departure from ``SyncBatchNorm.convert_sync_batchnorm``: a subclass with its own forward keeps working (timm's
norm-and-activation layers) or is an error. It is never replaced by a layer that does less.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from batch_renorm.norm.base import BatchRenorm
from batch_renorm.norm.layers import BatchRenorm1d, BatchRenorm2d, BatchRenorm3d, BatchRenormNd

PLAIN = {layer.folds_into: layer for layer in (BatchRenorm1d, BatchRenorm2d, BatchRenorm3d, BatchRenormNd)}


def convert_batchnorm(model: nn.Module, **options) -> nn.Module:
    """Replaces every batchnorm of a model by Batch Renormalization of the same kind.

    It converts ``nn.BatchNorm1d/2d/3d``, ``nn.SyncBatchNorm`` (each rank then normalises its own batch) and timm's
    batchnorm-and-activation layers. Parameters stay the same objects, so an optimiser that holds them keeps working.
    eps and the inference output stay the same. momentum (default: the paper's alpha, 0.01) and hooks are not kept.

    Args:
        model: changed in place and returned, unless it is a batchnorm itself; then the new layer is returned.
        **options: for every layer, as in :class:`BatchRenorm2d`, for instance ``scale=False``, ``group_size=4``.
            A ``ramp`` begins at the conversion: ``num_batches_tracked`` is set to 0.

    Raises ValueError, naming the layer, for a gamma not 1 with ``scale=False``, a beta not 0 with ``center=False``,
    an eps above a variance, no running statistics, a lazy layer; TypeError for a scripted model, a pruned layer, or a
    subclass with a forward or parameters of its own, such as timm's SplitBatchNorm2d.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError("the model is scripted or traced: convert it before that")
    made = {
        module: _renorm(module, f"layer {name!r}" if name else "the model", options)
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and not isinstance(module, BatchRenorm)
    }
    return _replaced(model, made)


def to_batchnorm(model: nn.Module) -> nn.Module:
    """Folds every Batch Renormalization into the batchnorm with equal inference outputs; model is as above.

    The weights then load into the stock model: a missing gamma or beta becomes 1 or 0. Old and new share tensors.
    """
    made = {module: module.as_batchnorm() for module in model.modules() if isinstance(module, BatchRenorm)}
    return _replaced(model, made)


@torch.no_grad()
def _renorm(module: _BatchNorm, where: str, options: dict) -> BatchRenorm:
    cls = type(module)
    plain = next((base for base in PLAIN if issubclass(cls, base)), None)
    if any(is_lazy(parameter) for parameter in module.parameters()):
        raise ValueError(f"{where} is not initialised yet: run the model once before converting")
    if plain is None or not (plain.forward is cls.forward or cls.__module__.startswith("timm.layers.")):
        raise TypeError(f"{where} is a {cls.__name__}, a batchnorm with a forward of its own: replace it by hand first")
    parts = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked", "drop", "act"}
    if more := [name for name in module.state_dict() if name.partition(".")[0] not in parts]:
        text = f"{where} is a {cls.__name__}, whose {more[0]} would be lost"
        raise TypeError(f"{text}: replace it by hand first, or make a pruned or parametrised weight plain again")
    mean, var = module.running_mean, module.running_var
    if mean is None or var is None:
        raise ValueError(f"{where} has no running statistics: it normalises with the batch in evaluation too")
    for parameter, value, name, option in ((module.weight, 1, "gamma", "scale"), (module.bias, 0, "beta", "center")):
        dropped = not (options.get(option, True) and options.get("affine", True))
        if dropped and parameter is not None and not bool((parameter == value).all()):
            raise ValueError(f"{where}: {option}=False drops a {name} that is not {value}: set it to {value} first")
    dtype = torch.float64 if mean.dtype == torch.float64 else None
    switches = {"scale": module.weight is not None, "bias": module.bias is not None} if module.affine else {}
    options = {"eps": module.eps, "affine": module.affine, "device": mean.device, "dtype": dtype, **switches, **options}
    make: Callable[..., BatchRenorm] = PLAIN[plain]
    if plain.forward is not cls.forward:
        from batch_renorm.norm.timm_layers import BatchRenormAct2d  # here because not everybody has timm

        make = partial(BatchRenormAct2d, source=module)
    layer = make(module.num_features, **options)
    layer.folds_into = cls
    wider = layer.eps - module.eps
    if wider > 0 and bool((var < wider).any()):
        raise ValueError(f"{where}: eps={layer.eps:g} is above the variance of a channel, whose output would change")
    for name in ("weight", "bias"):
        if getattr(layer, name) is not None and getattr(module, name) is not None:
            setattr(layer, name, getattr(module, name))
    for average, statistic in zip(layer.moving_averages(), (mean, (var - wider).clamp_min(0)), strict=True):
        average.copy_(statistic)
    if layer.ramp is None:  # which begins at the conversion
        layer.num_batches_tracked.copy_(module.num_batches_tracked)  # type: ignore[arg-type]
    layer.track_running_stats = module.track_running_stats  # False if a tool has frozen it
    return layer.train(module.training)


def _replaced(model: nn.Module, made: dict) -> nn.Module:
    """The model, or what is made of it, with every other module replaced by what is made of it."""
    for parent in list(model.modules()):
        if parent not in made:
            parent._modules.update({name: made[child] for name, child in parent._modules.items() if child in made})
    return made.get(model, model)
