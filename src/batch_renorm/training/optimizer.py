"""The recipe's optimiser: RMSProp in TensorFlow's form, its parameter groups and learning rate."""

from dataclasses import dataclass

from timm.optim.rmsprop_tf import RMSpropTF
from torch import nn


@dataclass(frozen=True)
class Optimization:
    """Everything about the loss and the update; names as in configs/optim.

    The learning rate of a step is lr * lr_decay ** floor(step / lr_decay_steps).
    """

    lr: float
    lr_decay: float
    lr_decay_steps: float
    decay: float
    momentum: float
    eps: float
    weight_decay: float
    clip_norm: float
    label_smoothing: float
    aux_weight: float

    def learning_rate(self, step: int) -> float:
        return self.lr * self.lr_decay ** (step // self.lr_decay_steps)

    def optimizer(self, model: nn.Module) -> RMSpropTF:
        weights, others = decayed_parameters(model)
        groups = [
            {"params": weights, "weight_decay": self.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        return RMSpropTF(
            [group for group in groups if group["params"]],
            lr=self.lr, alpha=self.decay, momentum=self.momentum, eps=self.eps,
            foreach=True,  # timm's default on GPUs; a small network's update on a CPU is shorter, too
        )  # fmt: skip


def decayed_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The weights of convolutions and linear layers, found by type, and all other parameters."""
    layers = (nn.modules.conv._ConvNd, nn.Linear)
    weights: list[nn.Parameter] = [m.weight for m in model.modules() if isinstance(m, layers)]  # type: ignore[misc]
    decayed = {id(weight) for weight in weights}
    return weights, [parameter for parameter in model.parameters() if id(parameter) not in decayed]
