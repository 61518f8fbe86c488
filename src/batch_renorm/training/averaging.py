"""The inference model: a decayed average of all parameters and of mu and sigma."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from batch_renorm.norm.layers import BatchRenorm


def average_decay(updates: int, decay: float) -> float:
    """The decay used after `updates` updates: the recipe's warm-up min(decay, (1 + n) / (10 + n))."""
    return min(decay, (1 + updates) / (10 + updates))


class InferenceModel(AveragedModel):
    """torch's AveragedModel with a warmed-up decay; call `update_parameters(model)` after every step.

    It averages mu and sigma with the parameters: sigma, not the variance that a norm stores. Counters are copied. The
    first update copies the model. Later ones read neither the number of updates from the device nor the tensors from
    the modules; a load or a move to another device makes the next one read both again.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, use_buffers=True)
        self.decay = decay
        self._updates: int | None = None
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        if self._updates is None:
            self._updates, self._average, self._current = int(self.n_averaged), State(self.module), State(model)
        if self._updates:
            rate = 1 - average_decay(self._updates, self.decay)
            torch._foreach_lerp_(self._average.plain, self._current.plain, rate)
            if self._average.variances:
                mine, theirs = self._average.sigmas(), self._current.sigmas()
                torch._foreach_lerp_(mine, theirs, rate)
                self._average.store(mine)
            if self._average.counters:
                torch._foreach_copy_(self._average.counters, self._current.counters)
        else:
            torch._foreach_copy_(self._average.every(), self._current.every())
        self.n_averaged += 1
        self._updates += 1

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        self._updates = None
        super()._load_from_state_dict(*args, **kwargs)

    def _apply(self, fn, recurse=True):
        self._updates = None  # after a move the model's buffers are other tensors
        return super()._apply(fn, recurse)


class State:
    """The tensors of a model, grouped by how they are averaged."""

    def __init__(self, model: nn.Module) -> None:
        norms = [m for m in model.modules() if isinstance(m, BatchRenorm)]
        self.variances = [norm.moving_averages()[1] for norm in norms]
        self.eps = [norm.eps for norm in norms]
        apart = {id(t) for t in self.variances}
        others = [t.detach() for t in (*model.parameters(), *model.buffers()) if id(t) not in apart]
        self.plain = [t for t in others if t.is_floating_point()]
        self.counters = [t for t in others if not t.is_floating_point()]

    def every(self) -> list[Tensor]:
        return self.plain + self.variances + self.counters

    def sigmas(self) -> tuple[Tensor, ...]:
        sigmas = torch._foreach_add(self.variances, self.eps)
        torch._foreach_sqrt_(sigmas)
        return sigmas

    def store(self, sigmas: tuple[Tensor, ...]) -> None:
        """Store the variances of sigmas; changes `sigmas`."""
        torch._foreach_mul_(sigmas, sigmas)
        torch._foreach_sub_(sigmas, self.eps)
        torch._foreach_clamp_min_(sigmas, 0.0)
        torch._foreach_copy_(self.variances, sigmas)
