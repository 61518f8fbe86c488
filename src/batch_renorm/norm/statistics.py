"""Mu and sigma move once a step, by the mean over all groups of all passes and ranks."""

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn

from batch_renorm.norm.algorithm1 import moved, spread, warn_not_finite
from batch_renorm.norm.base import BatchRenorm
from batch_renorm.norm.layers import layers_of


class GroupSums:
    """One layer's sums over the groups of the step so far, on its device."""

    def __init__(self, layer: BatchRenorm) -> None:
        new = layer.mu.new_zeros
        self.moments = new(2, layer.num_features)  # sum of muB; sum of sigmaB or the variance
        self.groups = new(1)
        self.clipped = new(2)  # number of r, and of d, outside the bounds; one per group and channel
        self.measure_clipping = False
        self.momentum = layer.momentum

    def add(self, layer: BatchRenorm, mu_b: Tensor, sigma_b: Tensor) -> None:
        """Add muB and sigmaB of shape (G, C), or (C) for one group."""
        if layer.momentum == 1 != self.momentum:
            raise RuntimeError("momentum=1 estimates mu and sigma anew: release() StepStatistics before it")
        moments = torch.stack([mu_b, spread(sigma_b, layer.averages, layer.eps)]).view(2, -1, layer.num_features)
        self.moments.add_(moments.sum(1))
        self.groups.add_(moments.shape[1])
        if torch.compiler.is_compiling() or self.measure_clipping:  # a condition would compile a second graph
            rmax, dmax = layer.limits.unbind()
            r, d = sigma_b / layer.sigma, (mu_b - layer.mu) / layer.sigma
            r_out = ((r > rmax) | (r < 1 / rmax)).sum()
            self.clipped.add_(torch.stack([r_out, (d.abs() > dmax).sum()]))

    def to(self, device: torch.device) -> None:
        self.moments, self.groups, self.clipped = (t.to(device) for t in (self.moments, self.groups, self.clipped))

    def __setstate__(self, state: dict) -> None:  # pickled for another process, tensors share their memory
        vars(self).update({name: t.clone() if isinstance(t, Tensor) else t for name, t in state.items()})


class StepStatistics:
    """Defers the update of mu and sigma of a whole model to one call a step.

    The paper leaves open how the statistics of its 50 workers reach the shared mu and sigma. Here, from construction
    to :meth:`release`, every training forward uses the values that the last step left, and :meth:`update` moves

        mu += alpha * (mean over all groups of muB - mu),      sigma likewise.

    So the result does not depend on how the groups are divided among ranks and passes. A layer without a group in the
    step keeps its mu and sigma, as does a channel that was not finite. All layers of the model are on one device.

    A copy (deepcopy, pickle, another process) works if it is made together with the model, for instance of an object
    that holds both; a copy of the model alone moves its mu and sigma at every forward.

    Args:
        model: its BatchRenorm layers are deferred.
        process_group: the ranks that train this model. Default: all.

    Raises ValueError if the model has no BatchRenorm layer, or one that belongs to another StepStatistics, or if this
    rank is not in the process group.
    """

    def __init__(self, model: nn.Module, process_group: dist.ProcessGroup | None = None) -> None:
        self.model, self.process_group = model, process_group
        if process_group is not None and dist.get_rank(process_group) < 0:
            raise ValueError("this rank is not in the process group of StepStatistics")
        self.layers = layers_of(model)
        for name, layer in self.layers.items():
            if layer.deferred is not None:
                raise ValueError(f"layer {name!r} belongs to another StepStatistics: release() that one first")
        self._sums = [GroupSums(layer) for layer in self.layers.values()]
        for layer, sums in zip(self.layers.values(), self._sums, strict=True):
            layer.deferred = sums
        self._clipped: tuple[Tensor, Tensor] | None = None
        self._settings: tuple = ()
        self._copied = False  # and not used since

    @property
    def measure_clipping(self) -> bool:
        """Whether the r and d that the bounds clip are counted; set it before a step."""
        return self._sums[0].measure_clipping

    @measure_clipping.setter
    def measure_clipping(self, value: bool) -> None:
        for sums in self._sums:
            sums.measure_clipping = value

    def __getstate__(self) -> dict:
        if self.process_group is not None:
            text = "a StepStatistics with a process group cannot be copied, because the group belongs to its process"
            raise TypeError(f"{text}: make StepStatistics(model, process_group=...) for the copy")
        return vars(self)

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._copied = True
        for layer, sums in zip(self.layers.values(), self._sums, strict=True):
            vars(layer)["deferred"] = sums

    @torch.no_grad()
    def update(self, extra: Tensor | None = None) -> Tensor | None:
        """Moves mu and sigma of every layer and clears the sums; every rank calls it, for one all-reduce.

        `extra`, a 1-d tensor of floats, is summed over the ranks in the same all-reduce and returned.
        Raises RuntimeError if a tool has replaced the layers, or for a copy of a StepStatistics without its model.
        """
        if extra is not None and extra.dim() != 1:
            raise ValueError(f"extra must be 1-d, got shape {tuple(extra.shape)}")
        if set(self.layers.values()).isdisjoint(self.model.modules()):
            text = "a tool has replaced every BatchRenorm layer since StepStatistics was made (sync_batchnorm, freeze)"
            raise RuntimeError(f"{text}: leave it off, or call convert_batchnorm and make StepStatistics after it")
        sums = [[s.moments for s in self._sums], [s.groups for s in self._sums], [s.clipped for s in self._sums]]
        parts = [torch.cat(some, -1).view(-1) for some in sums]
        parts += [] if extra is None else [extra.detach().to(parts[0].device)]
        flat = torch.cat(parts)
        if dist.is_available() and dist.is_initialized() and dist.get_world_size(self.process_group) > 1:
            dist.all_reduce(flat, group=self.process_group)
        moments, groups, clipped, *rest = flat.split([len(part) for part in parts])
        if self._copied and not groups.any():
            text = "no layer of this copy of StepStatistics has run: copy it in one object with the model"
            raise RuntimeError(f"{text}, or make StepStatistics(model) for the copied model")
        self._copied = False
        self._move(moments.view(2, -1), groups)
        self._clipped = (groups, clipped.view(-1, 2)) if self.measure_clipping else None
        torch._foreach_zero_([t for some in sums for t in some])  # pyright: ignore[reportPrivateImportUsage]
        return None if extra is None else rest[0].to(extra.dtype)

    def _move(self, moments: Tensor, groups: Tensor) -> None:
        layers = list(self.layers.values())
        sizes = [layer.num_features for layer in layers]
        if moments.is_cpu and not math.isfinite(moments.sum().item()):
            for (name, layer), total in zip(self.layers.items(), moments.split(sizes, 1), strict=True):
                warn_not_finite(f"{name}: {type(layer).__name__}" if name else type(layer).__name__, total.sum(0))
        counters = [layer.num_batches_tracked for layer in layers]
        torch._foreach_add_(counters, list((groups > 0).long().unbind()))
        settings = moments.device, moments.dtype, [(layer.momentum, layer.eps, layer.averages) for layer in layers]
        if settings != self._settings:  # kept, because a copy to a GPU waits for it
            self._settings, self._columns = settings, _per_channel(sizes, *settings)
        index, alpha, eps, variance = self._columns
        if any(layer.momentum is None for layer in layers):
            counts = torch.stack(counters).to(moments.dtype)
            alpha = torch.where(alpha.isnan(), counts.reciprocal()[index], alpha)
        means, variances = zip(*[layer.moving_averages() for layer in layers], strict=True)
        mean, var = (torch.cat(t).to(moments.dtype) for t in (means, variances))
        mu_b, target = moments / groups[index]  # of a layer without a group 0 / 0, which is not finite either
        new_mean, new_var = moved(mean, var, mu_b, target, alpha, eps, variance)
        torch._foreach_copy_(means + variances, new_mean.split(sizes) + new_var.split(sizes))

    def clipped_fractions(self) -> dict[str, tuple[float, float]]:
        """The fractions of r and d that were clipped in the last step, by layer name; over all layers under ``""``.

        All are while rmax is 1 and dmax is 0; NaN without a group. RuntimeError if ``measure_clipping`` was not set.
        """
        if self._clipped is None:
            raise RuntimeError("nothing was counted: set measure_clipping = True before the step")
        groups, clipped = (t.double().cpu() for t in self._clipped)
        values = groups * groups.new_tensor([layer.num_features for layer in self.layers.values()])
        shares = torch.cat([clipped.sum(0, True), clipped]) / torch.cat([values.sum(0, True), values]).unsqueeze(1)
        return {name: (r, d) for name, (r, d) in zip(["", *self.layers], shares.tolist(), strict=True)}

    def release(self) -> None:
        """Makes the layers update at every training forward again."""
        for layer in self.layers.values():
            layer.deferred = None


def _per_channel(sizes: list[int], device: torch.device, dtype: torch.dtype, settings: list[tuple]) -> list[Tensor]:
    """The layers' index, momentum (NaN for None), eps, and whether they average the variance, for every channel."""
    momentum, eps, averages = zip(*settings, strict=True)
    index = torch.tensor([k for k, size in enumerate(sizes) for _ in range(size)], device=device)
    alphas = [math.nan if alpha is None else alpha for alpha in momentum]
    alpha, epsilon = (torch.tensor(t, dtype=dtype, device=device)[index] for t in (alphas, eps))
    return [index, alpha, epsilon, torch.tensor([a == "variance" for a in averages], device=device)[index]]
