"""Statistics, affine map and gradients of all groups at once: a few calls, however many groups.

The native kernels know one group. Called for each, they cost more than they compute where tensors
are small or groups many. Two arrangements make one call serve all (:mod:`kernels` names the memory
orders and the suffixes):

* *planes*: the batch as one image of N * C channels, each with its own coefficients;
* *rows*: plain tensor operations on (G, M, C), which vectorise over channels.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from batch_renorm.norm import kernels

# Elements up to which plain operations on rows beat a native call per group on CPU.
ROWS_UP_TO = 1 << 18


class AtOnce(NamedTuple):
    """One arrangement. Statistics and coefficients are (G, C)."""

    statistics: Callable[[Tensor, int], tuple[Tensor, Tensor, Tensor, Tensor]]
    """x, groups -> x about centred, in a new tensor; the mean that is left in it; mean; biased variance."""
    affine_: Callable[[Tensor, Tensor, Tensor], Tensor]
    """x, slope, offset -> slope * x + offset, in place."""
    gradients: Callable[..., tuple[Tensor | None, Tensor, Tensor]]
    """As :func:`kernels.gradients`."""


def arrangement(x: Tensor, groups: int) -> AtOnce | None:
    """How to treat the groups of a dense tensor at once; None where native calls are better or needed."""
    if groups == 1 or x.dtype in kernels.HALF:
        return None
    M = x.numel() // (groups * x.shape[1])
    if kernels.in_rows(x):
        small = x.device.type != "cpu" or x.numel() <= ROWS_UP_TO
        return ROWS if small and M <= kernels.ROWS_CHUNK else None
    return PLANES if x.numel() <= kernels.PLANES_CHUNK * x.shape[0] * x.shape[1] else None


def _planes(x: Tensor) -> Tensor:
    return x.view(1, x.shape[0] * x.shape[1], -1)


def _per_plane(t_GC: Tensor, x: Tensor) -> Tensor:
    groups, C = t_GC.shape
    return t_GC.view(groups, 1, C).expand(groups, x.shape[0] // groups, C).reshape(-1)


def _per_group(t_P: Tensor, groups: int, x: Tensor) -> Tensor:
    return t_P.view(groups, -1, x.shape[1]).sum(1)


def _planes_statistics(x: Tensor, groups: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    N, C = x.shape[:2]
    count = x.numel() // (groups * C)
    x_GMCL = x.view(groups, N // groups, C, -1)
    first = x_GMCL.mean((1, 3))
    y = torch.empty_like(x)
    torch.sub(x_GMCL, first.view(groups, 1, C, 1), out=y.view(x_GMCL.shape))
    planes = _planes(y)
    square, total = kernels.reduce(planes, planes, x.new_zeros(N * C), x.new_ones(N * C))
    rest = _per_group(total, groups, x) / count
    var = (_per_group(square, groups, x) / count - rest.square()).clamp_min_(0)
    return y, rest, first + rest, var


def _planes_affine_(y: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    one = y.new_ones(y.shape[0] * y.shape[1])
    planes = _planes(y)
    kernels.scale_shift(planes, torch.zeros_like(one), one, _per_plane(slope, y), _per_plane(offset, y), planes)
    return y


def _planes_gradients(g: Tensor, x: Tensor, mean, inv, weight, need_x: bool):
    groups, C = mean.shape
    count = x.numel() // (groups * C)
    mean_P = _per_plane(mean, x)
    one = torch.ones_like(mean_P)
    product, total = kernels.reduce(_planes(g), _planes(x), mean_P, one)
    product, total = _per_group(product, groups, x), _per_group(total, groups, x)
    gx = None
    if need_x:
        # gx = scale * (g - mean(g) - xhat * mean(g * xhat)): first the part that is affine in x.
        gx = torch.empty_like(x)
        scale = weight * inv
        slope = _per_plane(-scale * inv.square() * product / count, x)
        offset = _per_plane(-scale * total / count, x)
        kernels.scale_shift(_planes(x), mean_P, one, slope, offset, _planes(gx))
        shape = (groups, x.shape[0] // groups, C, -1)
        gx.view(shape).addcmul_(g.view(shape), scale.view(groups, 1, C, 1))
    return gx, product * inv, total


def _rows(x: Tensor, groups: int) -> Tensor:
    return x.movedim(1, -1).reshape(groups, -1, x.shape[1])  # a view: x has its channels innermost


def _rows_statistics(x: Tensor, groups: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    y = torch.empty_like(x)
    x_GMC, y_GMC = _rows(x, groups), _rows(y, groups)
    mean = x_GMC.mean(1, keepdim=True)
    torch.sub(x_GMC, mean, out=y_GMC)
    mean = mean.squeeze(1)
    return y, torch.zeros_like(mean), mean, y_GMC.square().mean(1)


def _rows_affine_(y: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    _rows(y, len(slope)).mul_(slope.unsqueeze(1)).add_(offset.unsqueeze(1))
    return y


def _rows_gradients(g: Tensor, x: Tensor, mean, inv, weight, need_x: bool):
    groups = len(mean)
    g_GMC = _rows(g, groups)
    M = g_GMC.shape[1]
    centred = _rows(x, groups) - mean.unsqueeze(1)
    g_mean, product = g_GMC.mean(1), (g_GMC * centred).mean(1)
    gx = None
    if need_x:
        gx = torch.empty_like(x)
        slope = (-product * inv.square()).unsqueeze(1)
        out = torch.sub(g_GMC, g_mean.unsqueeze(1), out=_rows(gx, groups))
        out.addcmul_(centred, slope).mul_((weight * inv).unsqueeze(1))
    return gx, M * product * inv, M * g_mean


PLANES = AtOnce(_planes_statistics, _planes_affine_, _planes_gradients)
ROWS = AtOnce(_rows_statistics, _rows_affine_, _rows_gradients)
