"""The update of the weights: any torch optimiser, with the recipe's clipping, weight decay and learning rate."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from timm.optim.rmsprop_tf import RMSpropTF
from torch import nn

Share = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True)
class Optimization:
    """What is the same for every optimiser; names as in configs/optim.

    Args:
        lr: the learning rate of a step is lr * lr_decay ** floor(step / lr_decay_steps).
        weight_decay: of the weights of convolutions and linear layers alone.
        clip_norm: largest norm of all gradients together; inf leaves them as they are.
        make: makes the optimiser of parameter groups and a learning rate.
    """

    lr: NonNegativeFloat
    lr_decay: PositiveFloat
    lr_decay_steps: PositiveFloat
    weight_decay: NonNegativeFloat
    clip_norm: Annotated[float, Field(gt=0, allow_inf_nan=True)]
    make: Callable[..., torch.optim.Optimizer]

    def learning_rate(self, step: int) -> float:
        return self.lr * self.lr_decay ** (step // self.lr_decay_steps)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        weights, others = decayed_parameters(model)
        groups = ((weights, self.weight_decay), (others, 0.0))
        return self.make([{"params": some, "weight_decay": decay} for some, decay in groups if some], lr=self.lr)


class RMSProp(RMSpropTF):
    """RMSProp in TensorFlow's form: epsilon inside the root, the accumulator starts at 1."""

    def __init__(self, params: Any, lr: float, decay: Share, momentum: Share, eps: PositiveFloat) -> None:
        # foreach is timm's default on GPUs; a small network's update on a CPU is shorter, too
        super().__init__(params, lr=lr, alpha=decay, momentum=momentum, eps=eps, foreach=True)


def decayed_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The weights of convolutions and linear layers, found by type, and all other parameters."""
    layers = (nn.modules.conv._ConvNd, nn.Linear)
    weights = [m.weight for m in model.modules() if isinstance(m, layers) and isinstance(m.weight, nn.Parameter)]
    decayed = {id(weight) for weight in weights}
    return weights, [parameter for parameter in model.parameters() if id(parameter) not in decayed]
