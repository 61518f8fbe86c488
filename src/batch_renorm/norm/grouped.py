"""How forward and backward run over the groups of a batch: five arrangements of the kernels.

The native kernels know one group. Called for each, they cost more than they compute where tensors
are small or groups many, and those that write channels-last tensors are slow. So
(:mod:`layout` has the memory orders and the suffixes)

* *short*: a batch of one group of channels-last examples with few values of a channel;
* *native*: a native call per group; other batches of one group, half precision, and what the others do not take;
* *rows*: channels-last tensors as a matrix (G, M, K); statistics by a native call per group, or plain
  operations where groups are small, and every elementwise step in plain operations on all groups;
* *columns*: planes that are small, or of which a group has several, as such a matrix;
* *planes*: other planes; the batch as one image of N * C channels, each with its own coefficients.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from batch_renorm.norm import kernels
from batch_renorm.norm.layout import ROWS_CHUNK, Layout, channels, columns, layout_of, matrix, split

# Elements of a group from which a native call for each group beats plain operations on all, on CPU.
NATIVE_FROM = 25_000
# Elements of a batch up to which planes are a matrix however few of them a group has, and up to which
# plain operations write their gradient faster than the native kernel, which has to be copied from.
COLUMNS_UP_TO = 250_000
GRADIENT_UP_TO = 500_000


class Arrangement(NamedTuple):
    statistics: Callable[[Tensor, Layout], tuple[Tensor, Tensor, Any]]
    """x -> mean and biased variance, (G, C) or (C) of one group, and what `affine` may want."""
    affine: Callable[..., Tensor]
    """x, mean, var, inv, weight, bias, that -> (x - mean) * inv * weight + bias; inv is 1 / sqrt(var)."""
    gradients: Callable[..., tuple[Tensor | None, Tensor, Tensor]]
    """As :func:`kernels.gradients`."""


def planned(x: Tensor, groups: int) -> tuple[Tensor, Layout, Arrangement]:
    """The tensor in a memory order that the kernels know, copied only if it has none, and how to treat it."""
    plan = _plan(x.shape, x.stride(), x.dtype, x.is_cpu, groups)
    if plan is None:
        x = x.contiguous()
        plan = _plan(x.shape, x.stride(), x.dtype, x.is_cpu, groups)
        assert plan is not None
    return x, *plan


@lru_cache(maxsize=4096)  # deciding takes as long as a small layer
def _plan(shape, strides, dtype: torch.dtype, on_cpu: bool, groups: int) -> tuple[Layout, Arrangement] | None:
    lay = layout_of(shape, strides, dtype, on_cpu, groups)
    return None if lay is None else (lay, _arrangement(lay))


def _arrangement(lay: Layout) -> Arrangement:
    if lay.groups == 1 or lay.half:
        return SHORT if lay.plain and lay.in_rows and lay.together == 1 else NATIVE
    if lay.in_rows:
        return ROWS if lay.on_cpu or lay.M <= ROWS_CHUNK else NATIVE
    if lay.L > kernels.PLANES_CHUNK:
        return NATIVE
    small = lay.on_cpu and lay.groups * lay.M * lay.K <= COLUMNS_UP_TO
    return COLUMNS if small or lay.plain else PLANES


def _short_statistics(x: Tensor, lay: Layout) -> tuple[Tensor, Tensor, None]:
    return *torch.batch_norm_update_stats(x, None, None, 0.0), None


def _native_statistics(x: Tensor, lay: Layout) -> tuple[Tensor, Tensor, None]:
    return *kernels.statistics(x, lay), None


# ---- a matrix of every group ---------------------------------------------------------------------


def _by_native_calls(lay: Layout) -> bool:
    """Whether sums down the columns of a group are faster by a native call for each."""
    return lay.plain and lay.M * lay.K >= NATIVE_FROM


def _matrix_statistics(x: Tensor, lay: Layout) -> tuple[Tensor, Tensor, None]:
    if _by_native_calls(lay):
        return _native_statistics(x, lay)
    x_GMK = matrix(x, lay)
    mean = channels(x_GMK.mean(1), lay)
    centred = torch.sub(x_GMK, columns(mean, lay))
    return mean, channels(centred.square_().mean(1), lay), None


def _matrix_affine(x: Tensor, mean, var, inv, weight, bias, _, lay: Layout) -> Tensor:
    slope = weight * inv
    return kernels.slope_offset(x, slope, torch.addcmul(bias, mean, slope, value=-1), lay)


def _rows_gradients(g: Tensor, x: Tensor, mean, inv, weight, need_x: bool, lay: Layout):
    if _by_native_calls(lay):
        one = torch.ones_like(mean[0])
        sums = [kernels.reduce(*part, one) for part in zip(split(g, lay), split(x, lay), mean, strict=True)]
        product, total = (torch.stack(t) for t in zip(*sums, strict=True))
    else:
        g_GMC = matrix(g, lay)
        total = g_GMC.sum(1)
        product = torch.sub(matrix(x, lay), columns(mean, lay)).mul_(g_GMC).sum(1)
    g_weight = product.mul_(inv)
    return _matrix_gradient(g, x, mean, inv, weight, g_weight, total, lay) if need_x else None, g_weight, total


def _matrix_gradient(g: Tensor, x: Tensor, mean, inv, weight, g_weight, total, lay: Layout) -> Tensor:
    """gx = scale * (g - mean(g) - xhat * mean(g * xhat)): first the part that is affine in x."""
    scale = weight * inv
    share = scale / -(lay.M * lay.L)
    slope = share * inv * g_weight
    gx = kernels.slope_offset(x, slope, torch.addcmul(share * total, mean, slope, value=-1), lay)
    matrix(gx, lay).addcmul_(matrix(g, lay), columns(scale, lay))
    return gx


# ---- planes --------------------------------------------------------------------------------------


def _planes(x: Tensor) -> Tensor:
    return x.view(1, x.shape[0] * x.shape[1], -1)


def _per_plane(t_GC: Tensor, lay: Layout) -> Tensor:
    return t_GC.unsqueeze(1).expand(lay.groups, lay.M, lay.C).reshape(-1)


def _per_group(t_P: Tensor, lay: Layout) -> Tensor:
    return t_P.view(lay.groups, lay.M, lay.C).sum(1)


def _planes_statistics(x: Tensor, lay: Layout) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Also a new tensor with x about centred, which becomes the output, and the mean that is left in it."""
    G, C = lay.groups, lay.C
    x_GMCL = x.view(G, lay.M, C, lay.L)
    first = x_GMCL.mean((1, 3))
    y = torch.empty_like(x)
    torch.sub(x_GMCL, first.view(G, 1, C, 1), out=y.view(x_GMCL.shape))
    planes = _planes(y)
    one = planes.new_ones(planes.shape[1])
    square, total = kernels.reduce(planes, planes, torch.zeros_like(one), one)
    count = lay.M * lay.L
    rest = _per_group(total, lay) / count
    var = (_per_group(square, lay) / count - rest.square()).clamp_min_(0)
    return first + rest, var, (y, rest)


def _planes_affine(x: Tensor, mean, var, inv, weight, bias, centred: tuple[Tensor, Tensor], lay: Layout) -> Tensor:
    y, rest = centred
    slope = weight * inv
    offset = torch.addcmul(bias, rest, slope, value=-1)
    planes = _planes(y)
    one = planes.new_ones(planes.shape[1])
    kernels.scale_shift(planes, torch.zeros_like(one), one, _per_plane(slope, lay), _per_plane(offset, lay), planes)
    return y


def _planes_gradients(g: Tensor, x: Tensor, mean, inv, weight, need_x: bool, lay: Layout):
    if lay.on_cpu and x.numel() > GRADIENT_UP_TO:
        return kernels.gradients(g, x, mean, inv, weight, need_x, lay)
    mean_P = _per_plane(mean, lay)
    sums = kernels.reduce(_planes(g), _planes(x), mean_P, torch.ones_like(mean_P))
    product, total = (_per_group(t, lay) for t in sums)
    g_weight = product.mul_(inv)
    return _matrix_gradient(g, x, mean, inv, weight, g_weight, total, lay) if need_x else None, g_weight, total


SHORT = Arrangement(_short_statistics, _matrix_affine, kernels.gradients)
NATIVE = Arrangement(_native_statistics, kernels.affine, kernels.gradients)
ROWS = Arrangement(_matrix_statistics, _matrix_affine, _rows_gradients)
COLUMNS = Arrangement(_matrix_statistics, _matrix_affine, _planes_gradients)
PLANES = Arrangement(_planes_statistics, _planes_affine, _planes_gradients)
