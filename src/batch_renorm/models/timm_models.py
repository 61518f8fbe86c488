"""timm networks by name, with the experiment's norm in place of every batchnorm, and back to timm's own."""

import copy
import os
from difflib import get_close_matches
from functools import partial
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from batch_renorm.errors import UserError
from batch_renorm.models.depthwise import faster_on_cpu
from batch_renorm.models.frozen import frozen_batchnorm, frozen_norm
from batch_renorm.norm import BatchRenorm2d, convert_batchnorm, to_batchnorm


def create(
    name: str,
    classes: int,
    channels: int,
    norm: partial[Any],
    learned_gamma: bool = False,
    aux_logits: bool = False,
    drop_rate: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    checkpoint: str | None = None,
    frozen: NonNegativeInt = 0,
    **options: Any,
) -> nn.Module:
    """timm's model `name`, each BatchNorm replaced by a layer with `norm`'s settings.

    Args:
        norm: makes the norm layer for a number of channels; for BatchRenorm2d only its settings are used.
        learned_gamma: keep and learn each norm's gamma, for networks that start some at 0; the paper fixes gamma
            at 1.
        aux_logits, drop_rate: Inception-v3's auxiliary head; dropout before the classifier.
        checkpoint: a file of weights to start from, see `load_weights`. On trained weights the classifier starts at 0.
        frozen: this many blocks, as timm counts them, the stem included, keep their weights and their batchnorm's
            averages.
        options: passed to `timm.create_model`.

    Raises:
        UserError: no such model or option, a model without batchnorm, or weights that do not fit.
    """
    options |= ({"aux_logits": True} if aux_logits else {}) | ({"drop_rate": drop_rate} if drop_rate else {})
    model: Any = stock(name, num_classes=classes, in_chans=channels, **options)
    norms = {place: module for place, module in model.named_modules() if isinstance(module, _BatchNorm)}
    if not norms:
        raise UserError(f"model.name={name} has no batchnorm that Batch Renorm could take the place of")
    if checkpoint is not None:
        load_weights(model, checkpoint)
    if checkpoint is not None or options.get("pretrained"):
        for parameter in model.get_classifier().parameters():  # timm's start makes losses as large as the features are
            nn.init.zeros_(parameter)
    kept = freeze(model, frozen)
    trained = {place: module for place, module in norms.items() if place not in kept}
    gammas = [module.weight for module in trained.values() if module.weight is not None]
    if not learned_gamma and any(bool((gamma != 1).any()) for gamma in gammas):
        raise UserError(f"{name} starts some gammas at other values than 1: say model.learned_gamma=true")
    for place, old in trained.items():
        try:
            model.set_submodule(place, replacement(old, norm, learned_gamma))
        except ValueError as error:
            raise UserError(f"{name}, {place}: {error} (norm)") from error
    return faster_on_cpu(model)


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
    if not blocks:
        return set()
    from timm.models import group_parameters

    block_of = group_parameters(model, model.group_matcher(), reverse=True)
    most = max(block_of.values())  # the last one has the classifier
    if not 0 < blocks <= most:
        raise UserError(f"model.frozen={blocks}: the network has {most} blocks that can be frozen, stem included")
    names = {name for name, block in block_of.items() if block < blocks}
    for name in names:
        model.get_parameter(name).requires_grad_(False)
    places = {name.rpartition(".")[0] for name in names}
    for place in places:
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
    from timm.models import load_state_dict

    try:
        given = load_state_dict(os.path.expanduser(file))
    except Exception as error:  # reading a file that is none of weights may raise anything
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"cannot load weights from model.checkpoint={file}: {reason}") from error
    wanted = model.state_dict()
    names = model.pretrained_cfg["classifier"]
    classifier = tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))
    if not given.keys() >= {key for key in wanted if not key.startswith(classifier)} and len(given) == len(wanted):
        given = dict(zip(wanted, given.values(), strict=True))
    weights = {key: given.get(key) for key in wanted if not key.startswith(classifier)}
    for key, value in weights.items():
        if not isinstance(value, Tensor) or value.shape != wanted[key].shape:
            has = tuple(value.shape) if isinstance(value, Tensor) else "nothing"
            raise UserError(
                f"model.checkpoint={file} does not fit the network: {key} is {tuple(wanted[key].shape)}, "
                f"the file has {has} in its place"
            )
    model.load_state_dict(weights, strict=False)


def stock(name: str, **options: Any) -> nn.Module:
    """timm's own model.

    Raises:
        UserError: timm has no such model or option, or cannot load the weights.
    """
    import timm

    if not timm.is_model(name):
        known = timm.list_models() + timm.list_pretrained()
        close = get_close_matches(name, known, n=3, cutoff=0.6)
        raise UserError(f"timm has no model {name!r}" + (f"; did you mean {' or '.join(close)}?" if close else ""))
    try:
        return timm.create_model(name, **options)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise UserError(f"timm's {name} has no option {str(error).rpartition('argument ')[2]} (model)") from error
    except Exception as error:  # the download or a file of weights may raise anything
        if not (options.get("pretrained") or options.get("checkpoint_path")):
            raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        what = options.get("checkpoint_path") or "timm's weights, which are downloaded once"
        raise UserError(f"cannot load {name} from {what}: {reason}") from error


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
