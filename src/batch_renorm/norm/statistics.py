"""Move mu and sigma once a step, by the mean over all groups of all passes and ranks.

The paper leaves open how the statistics of its 50 workers reach the shared mu and sigma. Here every
group of a step uses the values that the last step left, and afterwards

    mu += alpha * (mean over all groups of muB - mu),      sigma likewise.

So the result does not depend on how the groups are divided among ranks and passes. A layer that
updates at every forward, like nn.BatchNorm, sees only its rank's groups and moves once a pass.
"""

import math
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from batch_renorm.norm.averages import moved_var, where_finite
from batch_renorm.norm.layers import BatchRenorm, layers_of, warn_not_finite

UNSUMMED = 64
"""Forwards of a layer that are kept before they are summed; there are more only if nobody calls `update`."""


class GroupSums:
    """One layer's sums over the groups of the step so far, on its device.

    Eager forwards are kept, and :meth:`StepStatistics.update` sums those of all layers in a few
    operations: the four operations of a single layer would take longer to launch than to compute. A
    compiled forward adds to the sums within its graph, in one fused operation.
    """

    def __init__(self, layer: BatchRenorm) -> None:
        new = layer.mu.new_zeros
        self.moments = new(2, layer.num_features)  # sum of muB; sum of sigmaB or the variance
        self.groups = new(1)
        self.clipped = new(2)  # number of r, and of d, outside the bounds; one per group and channel
        self.seen: list[tuple[Tensor, Tensor]] = []  # muB and sigmaB of forwards that are not summed yet

    def add(self, layer: BatchRenorm, mu_b: Tensor, sigma_b: Tensor) -> None:
        if torch.compiler.is_compiling():
            self.sum(layer, mu_b, sigma_b)
            self.count_clipped(layer, mu_b, sigma_b)  # always: a condition would compile a second graph
            return
        if len(self.seen) == UNSUMMED:
            for earlier in self.seen:
                self.sum(layer, *earlier)
                self.count_clipped(layer, *earlier)
            self.seen.clear()
        self.seen.append((mu_b, sigma_b))

    def sum(self, layer: BatchRenorm, mu_b: Tensor, sigma_b: Tensor) -> None:
        moments = torch.stack([rows(mu_b), layer.spread(rows(sigma_b))])
        self.moments.add_(moments.sum(1))
        self.groups.add_(moments.shape[1])

    def count_clipped(self, layer: BatchRenorm, mu_b: Tensor, sigma_b: Tensor) -> None:
        rmax, dmax = layer.limits.unbind()
        r, d = sigma_b / layer.sigma, (mu_b - layer.mu) / layer.sigma
        r_out = ((r > rmax) | (r < 1 / rmax)).sum()
        self.clipped.add_(torch.stack([r_out, (d.abs() > dmax).sum()]))

    def tensors(self) -> list[Tensor]:
        return [self.moments, self.groups, self.clipped]

    def to(self, device: torch.device) -> None:
        self.moments, self.groups, self.clipped = (t.to(device) for t in self.tensors())
        self.seen = [(mu_b.to(device), sigma_b.to(device)) for mu_b, sigma_b in self.seen]


def rows(t: Tensor) -> Tensor:
    """t as (G, C); a single group may come as (C)."""
    return t if t.dim() == 2 else t.unsqueeze(0)


class StepStatistics:
    """Defers the update of mu and sigma of a whole model to one call a step.

    From construction to :meth:`release` every training forward of a BatchRenorm layer adds its
    groups' statistics to sums on the device, and :meth:`update` moves mu and sigma of all layers.
    A layer without a group in the step keeps its mu and sigma, as does a channel that was not finite.

    Args:
        model: a model with BatchRenorm layers, all on one device.

    Raises:
        ValueError: no BatchRenorm layer, or one that belongs to another StepStatistics.

    Example::

        >>> statistics = StepStatistics(model)
        >>> for images, labels in passes:
        ...     cross_entropy(model(images), labels).backward()
        >>> optimizer.step()
        >>> statistics.update()
    """

    def __init__(self, model: nn.Module) -> None:
        self.layers = layers_of(model)
        taken = [name for name, layer in self.layers.items() if layer.deferred is not None]
        if taken:
            raise ValueError(f"layer {taken[0]!r} belongs to another StepStatistics: release() that one first")
        self._sums = [GroupSums(layer) for layer in self.layers.values()]
        for layer, sums in zip(self.layers.values(), self._sums, strict=True):
            layer.deferred = sums
        self.measure_clipping = False
        """Whether `update` also counts the r and d that were clipped."""
        self._clipped: tuple[Tensor, Tensor] | None = None
        self._settings: tuple | None = None

    @torch.no_grad()
    def update(self, extra: Tensor | None = None, reduce: Callable[[Tensor], object] | None = None) -> Tensor | None:
        """Moves mu and sigma of every layer and clears the sums; every rank calls it, for one all-reduce.

        Args:
            extra: 1-d tensor of floats to be summed over the ranks in the same all-reduce.
            reduce: sums a flat tensor over the ranks, in place. Default: torch.distributed's
                all-reduce if a process group with several ranks is initialised.

        Returns:
            extra summed over the ranks, or None.
        """
        if extra is not None and extra.dim() != 1:
            raise ValueError(f"extra must be 1-d, got shape {tuple(extra.shape)}")
        self._sum_seen()
        moments = torch.cat([s.moments for s in self._sums], dim=1)
        counts = [s.groups for s in self._sums] + [s.clipped for s in self._sums]
        parts = [moments.reshape(-1), *counts]
        if extra is not None:
            parts.append(extra.detach().to(moments.device))
        flat = torch.cat(parts)
        if reduce is not None:
            reduce(flat)
        elif dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(flat)
        sizes = [moments.numel(), len(self._sums), 2 * len(self._sums)]
        total, groups, clipped, rest = flat.split([*sizes, len(flat) - sum(sizes)])
        total = total.view_as(moments)
        if total.device.type == "cpu" and not math.isfinite(total.sum().item()):
            self._warn_not_finite(total)
        self._move(total, groups)
        self._clipped = (groups, clipped.view(-1, 2)) if self.measure_clipping else None
        torch._foreach_zero_(  # pyright: ignore[reportPrivateImportUsage]
            [t for s in self._sums for t in s.tensors()]
        )
        return None if extra is None else rest.to(extra.dtype)

    def _sum_seen(self) -> None:
        """Add the eager forwards to the layers' sums; layers with the same numbers of groups are summed together."""
        pairs = list(zip(self.layers.values(), self._sums, strict=True))
        alike: dict[tuple, list[tuple[BatchRenorm, GroupSums]]] = {}
        for layer, sums in pairs:
            if sums.seen:
                groups = tuple(len(mu_b) if mu_b.dim() == 2 else 1 for mu_b, _ in sums.seen)
                alike.setdefault((groups, layer.averages, layer.eps), []).append((layer, sums))
        for (groups, *_), some in alike.items():
            first, moments = some[0][0], [sums.moments for _, sums in some]
            for forward in range(len(groups)):
                mu_b, sigma_b = (torch.cat([rows(sums.seen[forward][i]) for _, sums in some], 1) for i in (0, 1))
                total = torch.stack([mu_b.sum(0), first.spread(sigma_b).sum(0)])
                parts = total.split([layer.num_features for layer, _ in some], 1)
                torch._foreach_add_(moments, parts)  # pyright: ignore[reportPrivateImportUsage]
            torch._foreach_add_(  # pyright: ignore[reportPrivateImportUsage]
                [sums.groups for _, sums in some], [float(sum(groups))] * len(some)
            )
        for layer, sums in pairs:
            for mu_b, sigma_b in sums.seen if self.measure_clipping else ():
                sums.count_clipped(layer, mu_b, sigma_b)
            sums.seen.clear()

    def _move(self, total: Tensor, groups: Tensor) -> None:
        layers = list(self.layers.values())
        counters = [layer.num_batches_tracked for layer in layers]
        torch._foreach_add_(counters, list((groups > 0).long().unbind()))
        index, alpha, eps, variance = self._per_channel(total)
        if any(layer.momentum is None for layer in layers):
            counts = torch.stack(counters).to(total.dtype)
            alpha = torch.where(alpha.isnan(), counts.reciprocal()[index], alpha)
        groups = groups[index]
        means, variances = ([layer.moving_averages()[i] for layer in layers] for i in (0, 1))
        mean, var = (torch.cat(t).to(total.dtype) for t in (means, variances))
        target_mean, target = (total / groups).unbind()
        # A layer without a group in the step has 0 / 0: not finite either.
        new = where_finite(mean.lerp(target_mean, alpha), moved_var(var, target, alpha, eps, variance), mean, var)
        sizes = [layer.num_features for layer in layers]
        parts = [*new[0].split(sizes), *new[1].split(sizes)]
        torch._foreach_copy_(means + variances, parts)

    def _warn_not_finite(self, total: Tensor) -> None:
        sizes = [layer.num_features for layer in self.layers.values()]
        for (name, layer), moments in zip(self.layers.items(), total.split(sizes, 1), strict=True):
            warn_not_finite(f"{name}: {type(layer).__name__}" if name else type(layer).__name__, moments.sum(0))

    def _per_channel(self, total: Tensor) -> list[Tensor]:
        """The layers' index, momentum, eps and averages for every channel, recomputed when they change."""
        layers = self.layers.values()
        rows = tuple((layer.momentum, layer.eps, layer.averages) for layer in layers)
        key = (rows, total.device, total.dtype)
        if self._settings is None or self._settings[0] != key:
            features = [layer.num_features for layer in layers]
            alpha = total.new_tensor([math.nan if row[0] is None else row[0] for row in rows])
            eps = total.new_tensor([row[1] for row in rows])
            variance = torch.tensor([row[2] == "variance" for row in rows], device=total.device)
            index = torch.arange(len(features)).repeat_interleave(torch.tensor(features), output_size=sum(features))
            index = index.to(total.device)
            self._settings = key, [index, alpha[index], eps[index], variance[index]]
        return self._settings[1]

    def clipped_fractions(self) -> dict[str, tuple[float, float]]:
        """The fractions of r and d that were clipped in the step of the last :meth:`update`.

        By layer name, and over all layers under ``""``. While rmax is 1 and dmax is 0, all are
        clipped. A layer without a group has NaN.

        Raises:
            RuntimeError: ``measure_clipping`` was not set during the last :meth:`update`.
        """
        if self._clipped is None:
            raise RuntimeError("nothing was counted: set measure_clipping = True before the step")
        features = [layer.num_features for layer in self.layers.values()]
        groups, clipped = (t.double().cpu() for t in self._clipped)
        values = groups * groups.new_tensor(features)
        shares = (clipped / values.unsqueeze(1)).tolist()
        overall = (clipped.sum(0) / values.sum()).tolist()
        fractions = {name: (r, d) for name, (r, d) in zip(self.layers, shares, strict=True)}
        return {"": tuple(overall), **fractions}

    def release(self) -> None:
        """Makes the layers update at every training forward again."""
        for layer in self.layers.values():
            layer.deferred = None
