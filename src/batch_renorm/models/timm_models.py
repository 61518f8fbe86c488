"""timm networks by name, with the experiment's norm in place of every batchnorm, and back to timm's own."""

import copy
import os
from functools import partial
from typing import Annotated, Any

import timm
from pydantic import Field, NonNegativeInt
from timm.models import group_parameters, load_state_dict
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from batch_renorm.errors import UserError, did_you_mean
from batch_renorm.models.frozen import frozen_batchnorm, frozen_norm
from batch_renorm.norm import BatchRenorm2d, convert_batchnorm, to_batchnorm


def create(
    name: str,
    classes: int,
    channels: int,
    norm: partial[Any],
    learned_gamma: bool = False,
    drop_rate: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    checkpoint: str | None = None,
    frozen: NonNegativeInt = 0,
    **options: Any,
) -> nn.Module:
    """timm's model `name`, each BatchNorm replaced by a layer with `norm`'s settings.

    Args:
        norm: makes the norm layer for a number of channels; for BatchRenorm2d only its settings are used.
        learned_gamma: keep and learn each norm's gamma, for networks that start some at 0; the paper fixes it at 1.
        drop_rate: dropout before the classifier.
        checkpoint: a file of weights to start from, see `load_weights`. On trained weights the classifier starts at 0.
        frozen: so many blocks, as timm counts them from the stem on, keep their weights and batchnorm's averages.
        options: passed to `timm.create_model`.

    Raises:
        UserError: no such model or option, a model without batchnorm, or weights that do not fit.
    """
    if drop_rate:
        options["drop_rate"] = drop_rate
    model: Any = stock(name, num_classes=classes, in_chans=channels, **options)
    norms = {place: module for place, module in model.named_modules() if isinstance(module, _BatchNorm)}
    if not norms:
        raise UserError(f"model.name={name} has no batchnorm that Batch Renorm could take the place of")
    if checkpoint is not None:
        load_weights(model, checkpoint)
    if checkpoint is not None or options.get("pretrained"):
        for parameter in model.get_classifier().parameters():  # timm's start makes losses as large as the features are
            nn.init.zeros_(parameter)
    kept = freeze(model, frozen) if frozen else set()
    trained = {place: module for place, module in norms.items() if place not in kept}
    gammas = [module.weight for module in trained.values() if module.weight is not None]
    if not learned_gamma and any(bool((gamma != 1).any()) for gamma in gammas):
        raise UserError(f"{name} starts some gammas at other values than 1: say model.learned_gamma=true")
    for place, old in trained.items():
        try:
            model.set_submodule(place, replacement(old, norm, learned_gamma))
        except ValueError as error:
            raise UserError(f"{name}, {place}: {error} (norm)") from error
    return model


def replacement(old: _BatchNorm, norm: partial[Any], learned_gamma: bool) -> nn.Module:
    """What takes the place of a batchnorm, with its gamma and beta.

    timm's norm-and-activation layers become a sequence of another norm, their drop and their activation.
    """
    if norm.func is BatchRenorm2d:
        return convert_batchnorm(old, **(norm.keywords | {"scale": learned_gamma}))
    if norm.func is frozen_batchnorm:
        return frozen_norm(old)
    new = norm(old.num_features, scale=True) if learned_gamma else norm(old.num_features)
    for parameter in ("weight", "bias"):
        start, learned = getattr(old, parameter), getattr(new, parameter, None)
        if start is not None and learned is not None:
            learned.data.copy_(start.data)
    rest = [getattr(old, part) for part in ("drop", "act") if isinstance(getattr(old, part, None), nn.Module)]
    return nn.Sequential(new, *rest) if rest else new


def freeze(model: Any, blocks: int) -> set[str]:
    """Freeze the first blocks of a timm model, in timm's order; the names of all frozen modules.

    Their weights get no gradient, and their batchnorm stays in evaluation mode.
    """
    block_of = group_parameters(model, model.group_matcher(), reverse=True)
    if blocks > (most := max(block_of.values())):  # the last one has the classifier
        raise UserError(f"model.frozen={blocks}: the network has {most} blocks that can be frozen, stem included")
    places = set()
    for name in (name for name, block in block_of.items() if block < blocks):
        model.get_parameter(name).requires_grad_(False)
        place = name.rpartition(".")[0]
        places.add(place)
        if isinstance(module := model.get_submodule(place), _BatchNorm):
            frozen_norm(module)
    return places


def load_weights(model: Any, file: str) -> None:
    """Load all weights but the classifier's, which stay as they are.

    Args:
        file: state dict of the same network, with timm's names or with others in the same order.

    Raises:
        UserError: no such file, or weights of another network.
    """
    try:
        given = load_state_dict(os.path.expanduser(file))
    except Exception as error:  # reading a file that is none of weights may raise anything
        raise UserError(f"cannot load weights from model.checkpoint={file}: {reason(error)}") from error
    own, names = model.state_dict(), model.pretrained_cfg["classifier"]
    classifier = tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))
    kept = {key: value for key, value in own.items() if key.startswith(classifier)}
    if len(given) == len(own) and not given.keys() >= own.keys() - kept.keys():
        given = dict(zip(own, given.values(), strict=True))
    try:
        model.load_state_dict({key: given[key] for key in own if key in given} | kept)
    except RuntimeError as error:
        raise UserError(f"model.checkpoint={file} does not fit the network: {reason(error)}") from error


def stock(name: str, **options: Any) -> nn.Module:
    """timm's own model.

    Raises:
        UserError: timm has no such model or option, or cannot load the weights.
    """
    if not timm.is_model(name):
        raise UserError(f"timm has no model {name!r}{did_you_mean(name, timm.list_models() + timm.list_pretrained())}")
    try:
        return timm.create_model(name, **options)
    except Exception as error:  # the download or a file of weights may raise anything
        if isinstance(error, TypeError) and "unexpected keyword argument" in str(error):
            option = str(error).rpartition("argument ")[2]
            raise UserError(f"timm's {name} has no option {option} (model)") from error
        if not (options.get("pretrained") or options.get("checkpoint_path")):
            raise
        what = options.get("checkpoint_path") or "timm's weights, which are downloaded once"
        raise UserError(f"cannot load {name} from {what}: {reason(error)}") from error


def reason(error: Exception) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def stock_weights(model: nn.Module, name: str, classes: int, channels: int = 3) -> dict[str, Tensor]:
    """Weights with which `timm.create_model(name, num_classes=classes)` gives the inference outputs of `model`.

    Every mu and sigma becomes a running mean and variance for the eps of timm's layer. An auxiliary head is left
    out if timm's model has none.

    Args:
        model: made by :func:`create`; not changed.
    """
    folded = to_batchnorm(copy.deepcopy(model))
    plain = stock(name, num_classes=classes, in_chans=channels)
    weights = folded.state_dict()
    for place, layer in plain.named_modules():
        if isinstance(layer, _BatchNorm):
            eps: Any = folded.get_submodule(place).eps
            weights[f"{place}.running_var"] = (weights[f"{place}.running_var"] + eps - layer.eps).clamp_min(0)
    return {key: weights[key].contiguous() for key in plain.state_dict()}
