"""The inference model: a decayed average of all parameters and of mu and sigma."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def average_decay(updates: int, decay: float) -> float:
    """The decay used after `updates` updates: the recipe's warm-up min(decay, (1 + n) / (10 + n))."""
    return min(decay, (1 + updates) / (10 + updates))


class InferenceModel(AveragedModel):
    """torch's AveragedModel with the warmed-up decay; `update_parameters(model)` after every step.

    Buffers are averaged with the parameters: in a model whose norms are ours they are mu and sigma.
    The first update copies the model.

    Departure from AveragedModel: an update does not ask the device for the number of updates, nor the
    modules for their tensors. Both are known from the first update after a load or a move.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, use_buffers=True)
        self.decay = decay
        self._updates: int | None = None
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        if self._updates is None:
            self._updates, self._average, self._current = int(self.n_averaged), tensors(self.module), tensors(model)
        if self._updates:
            torch._foreach_lerp_(self._average, self._current, 1 - average_decay(self._updates, self.decay))
        else:
            torch._foreach_copy_(self._average, self._current)
        self.n_averaged += 1
        self._updates += 1

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        self._updates = None
        super()._load_from_state_dict(*args, **kwargs)

    def _apply(self, fn, recurse=True):
        self._updates = None  # moved to a device: the model's buffers are other tensors
        return super()._apply(fn, recurse)


def tensors(model: nn.Module) -> list[Tensor]:
    return [t.detach() for t in (*model.parameters(), *model.buffers())]
