"""timm networks by name, with the experiment's norm in place of every batchnorm, and back to timm's own."""

import copy
from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor, nn

from batch_renorm.errors import UserError
from batch_renorm.norm import BatchRenorm2d, convert_batchnorm, to_batchnorm


def create(
    name: str,
    classes: int,
    channels: int,
    norm: partial[Any],
    learned_gamma: bool = False,
    aux_logits: bool = False,
    drop_rate: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    **options: Any,
) -> nn.Module:
    """timm's model `name`, each BatchNorm replaced by a layer with `norm`'s settings.

    Args:
        norm: makes the norm layer for a number of channels; for BatchRenorm2d only its settings are used.
        learned_gamma: keep and learn each norm's gamma, for networks that start some at 0; the paper fixes gamma
            at 1.
        aux_logits, drop_rate: Inception-v3's auxiliary head; dropout before the classifier.
        options: passed to `timm.create_model`.

    Raises:
        UserError: no such model or option, or a model without batchnorm.
    """
    options |= ({"aux_logits": True} if aux_logits else {}) | ({"drop_rate": drop_rate} if drop_rate else {})
    model = stock(name, num_classes=classes, in_chans=channels, **options)
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        raise UserError(f"model.name={name} has no batchnorm that Batch Renorm could take the place of")
    if not learned_gamma and any(module.weight is not None and bool((module.weight != 1).any()) for module in norms):
        raise UserError(f"{name} starts some gammas at other values than 1: say model.learned_gamma=true")
    if norm.func is BatchRenorm2d:
        return convert_batchnorm(model, **(norm.keywords | {"scale": learned_gamma}))
    return replace_batchnorm(model, partial(norm, scale=True) if learned_gamma else norm)


def replace_batchnorm(model: nn.Module, norm: Callable[[int], nn.Module]) -> nn.Module:
    """Replace every batchnorm by another norm, which keeps the initial gamma and beta.

    timm's norm-and-activation layers become a sequence of the norm, their drop and their activation.

    Args:
        model: changed in place.
    """
    for parent in list(model.modules()):
        for name, old in list(parent.named_children()):
            if not isinstance(old, nn.modules.batchnorm._BatchNorm):
                continue
            new = norm(old.num_features)
            for parameter in ("weight", "bias"):
                start, learned = getattr(old, parameter), getattr(new, parameter, None)
                if start is not None and learned is not None:
                    learned.data.copy_(start.data)
            rest = [getattr(old, part) for part in ("drop", "act") if isinstance(getattr(old, part, None), nn.Module)]
            setattr(parent, name, nn.Sequential(new, *rest) if rest else new)
    return model


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
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            own = folded.get_submodule(place)
            assert isinstance(own, nn.modules.batchnorm._BatchNorm)
            weights[f"{place}.running_var"] = (weights[f"{place}.running_var"] + own.eps - layer.eps).clamp_min(0)
    return {key: weights[key].contiguous() for key in plain.state_dict()}
