"""How forward and backward run over the groups of a batch: three arrangements of the kernels.

The native kernels know one group. Called for each, they cost more than they compute where tensors
are small or groups many, and those that write channels-last tensors are slow. So
(:mod:`kernels` names the memory orders and the suffixes)

* *native*: a native call per group; half precision, and what the others do not take;
* *planes*: the batch as one image of N * C channels, each with its own coefficients;
* *rows*: (G, M, C); statistics by a native call per group, or plain operations where groups are
  small, and every elementwise step in plain operations on all groups.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from batch_renorm.norm import kernels

# Elements of a group from which a native call for each group beats plain operations on all, on CPU.
ROWS_NATIVE_FROM = 50_000


class Found(NamedTuple):
    """The statistics of a batch, (G, C), or (C) where the native arrangement has one group."""

    mean: Tensor
    var: Tensor
    """Biased."""
    centred: Tensor | None = None
    """A new tensor with x about centred, which becomes the output, and the mean that is left in it."""
    rest: Tensor | None = None


class Arrangement(NamedTuple):
    statistics: Callable[[Tensor, int], Found]
    """x, groups -> statistics."""
    affine: Callable[[Tensor, Found, Tensor, Tensor, Tensor, float], Tensor]
    """x, statistics, inv, weight, bias, eps -> (x - mean) * inv * weight + bias; inv is 1 / sqrt(var + eps)."""
    gradients: Callable[..., tuple[Tensor | None, Tensor, Tensor]]
    """As :func:`kernels.gradients`."""


def arrangement(x: Tensor, groups: int) -> Arrangement:
    """How to treat the groups of a dense tensor."""
    if groups == 1 or x.dtype in kernels.HALF:
        return NATIVE
    if kernels.in_rows(x):
        M = x.numel() // (groups * x.shape[1])
        return ROWS if x.device.type == "cpu" or M <= kernels.ROWS_CHUNK else NATIVE
    return PLANES if x.numel() <= kernels.PLANES_CHUNK * x.shape[0] * x.shape[1] else NATIVE


def _native_statistics(x: Tensor, groups: int) -> Found:
    return Found(*kernels.statistics(x, groups))


def _native_affine(x: Tensor, found: Found, inv: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return kernels.affine(x, found.mean, found.var, inv, weight, bias, eps)


def _planes(x: Tensor) -> Tensor:
    return x.view(1, x.shape[0] * x.shape[1], -1)


def _per_plane(t_GC: Tensor, x: Tensor) -> Tensor:
    groups, C = t_GC.shape
    return t_GC.view(groups, 1, C).expand(groups, x.shape[0] // groups, C).reshape(-1)


def _per_group(t_P: Tensor, groups: int, x: Tensor) -> Tensor:
    return t_P.view(groups, -1, x.shape[1]).sum(1)


def _planes_statistics(x: Tensor, groups: int) -> Found:
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
    return Found(first + rest, var, y, rest)


def _planes_affine(x: Tensor, found: Found, inv: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    y, rest = found.centred, found.rest
    assert y is not None
    assert rest is not None
    slope = weight * inv
    offset = torch.addcmul(bias, rest, slope, value=-1)
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


def _by_native_calls(x: Tensor, groups: int) -> bool:
    """Whether sums over the rows of a group are faster by a native call for each."""
    return x.device.type == "cpu" and x.numel() >= ROWS_NATIVE_FROM * groups


def _rows_statistics(x: Tensor, groups: int) -> Found:
    if _by_native_calls(x, groups):
        return Found(*kernels.statistics(x, groups))
    x_GMC = kernels.rows(x, groups)
    mean = x_GMC.mean(1)
    return Found(mean, torch.sub(x_GMC, mean.unsqueeze(1)).square_().mean(1))


def _rows_affine(x: Tensor, found: Found, inv: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    slope = weight * inv
    return kernels.slope_offset(x, slope, torch.addcmul(bias, found.mean, slope, value=-1))


def _rows_gradients(g: Tensor, x: Tensor, mean, inv, weight, need_x: bool):
    groups = len(mean)
    x_GMC, g_GMC = kernels.rows(x, groups), kernels.rows(g, groups)
    if _by_native_calls(x, groups):
        one = torch.ones_like(mean[0])
        parts = zip(kernels.split(g, groups), kernels.split(x, groups), mean, strict=True)
        sums = [kernels.reduce(*part, one) for part in parts]
        product, total = (torch.stack(t) for t in zip(*sums, strict=True))
    else:
        total = g_GMC.sum(1)
        product = torch.sub(x_GMC, mean.unsqueeze(1)).mul_(g_GMC).sum(1)
    g_weight = product.mul_(inv)
    if not need_x:
        return None, g_weight, total
    # gx = scale * (g - mean(g) - xhat * mean(g * xhat)): first the part that is affine in x.
    scale = weight * inv
    share = scale / -x_GMC.shape[1]
    slope = share * inv * g_weight
    gx = kernels.slope_offset(x, slope, torch.addcmul(share * total, mean, slope, value=-1))
    kernels.rows(gx, groups).addcmul_(g_GMC, scale.unsqueeze(1))
    return gx, g_weight, total


NATIVE = Arrangement(_native_statistics, _native_affine, kernels.gradients)
PLANES = Arrangement(_planes_statistics, _planes_affine, _planes_gradients)
ROWS = Arrangement(_rows_statistics, _rows_affine, _rows_gradients)
