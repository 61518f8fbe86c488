"""The inference model: a decayed average of all parameters and of mu and sigma."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def average_decay(updates: int, decay: float) -> float:
    """The decay used after `updates` updates: the recipe's warm-up min(decay, (1 + n) / (10 + n))."""
    return min(decay, (1 + updates) / (10 + updates))


def inference_model(model: nn.Module, decay: float) -> AveragedModel:
    """torch's AveragedModel with the warmed-up decay; `update_parameters(model)` after every step.

    Buffers are averaged with the parameters: in a model whose norms are ours they are mu and sigma.
    The first update copies the model.
    """

    @torch.no_grad()
    def update(average: list[Tensor], current: list[Tensor], updates: Tensor | int) -> None:
        torch._foreach_lerp_(average, current, 1 - average_decay(int(updates), decay))

    averaged = AveragedModel(model, multi_avg_fn=update, use_buffers=True)  # type: ignore[arg-type]
    return averaged.requires_grad_(False).eval()
