"""The native batchnorm kernels, for one group of examples, and for each of several in turn.

With r and d held constant Batch Renormalization is batchnorm with weight ``gamma * r`` and bias
``beta + gamma * d``, so forward and backward are the kernels behind ``nn.BatchNorm2d``. What is
added here is the statistics, where those kernels are slow or inaccurate on CPU.

:mod:`layout` has the memory orders and the suffixes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from batch_renorm.norm.layout import HALF, ROWS_CHUNK, Layout, columns, layout, matrix, mean_of_rows, split

aten = torch.ops.aten

# Elements from which planes are faster summed down the columns of their matrix, or in blocks, than by
# the native kernel, and bytes of a block (about an L2 cache: centring and squaring read it from there).
COLUMNS_FROM = 50_000
BLOCKED_FROM = 250_000
BLOCK_BYTES = 1 << 20
# Values of a channel that may be summed into one float32 accumulator for each vector lane (planes). Over
# 700,000 values that is off by 2e-5 of the variance; chunks of this size, merged, by 2e-6.
PLANES_CHUNK = 1 << 16


def statistics_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


# ---- mean and biased variance of every channel ---------------------------------------------------


def statistics(x: Tensor, lay: Layout) -> tuple[Tensor, Tensor]:
    """New tensors of shape (G, C); of shape (C) for one group, where handling G would cost time."""
    if lay.groups == 1:
        return _statistics(x, lay)
    means, variances = zip(*[_statistics(part, layout(part, 1)) for part in split(x, lay)], strict=True)
    return torch.stack(means), torch.stack(variances)


def _statistics(x: Tensor, lay: Layout) -> tuple[Tensor, Tensor]:
    if not lay.on_cpu:
        return _native_statistics(x)
    if lay.in_rows:
        return _rows_statistics(x, lay)
    C, L = lay.C, lay.L
    if lay.plain and x.numel() >= COLUMNS_FROM:
        rows = matrix(x, lay)
        means, variances = _rows_statistics(rows, layout(rows, 1))
        return _merge_equal(means.view(C, L).t(), variances.view(C, L).t())
    if L > PLANES_CHUNK and x.dim() > 3:
        # Lines as channels, then merged: a plane is too long for one sum.
        lines = x.flatten(1, 2)
        means, variances = _statistics(lines, layout(lines, 1))
        return _merge_equal(means.view(C, -1).t(), variances.view(C, -1).t())
    if lay.half:
        return _in_chunks(x.split(max(1, PLANES_CHUNK // L)))
    return _blocked_statistics(x) if x.numel() > BLOCKED_FROM else _native_statistics(x)


def _native_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    if x.dtype not in HALF:
        return torch.batch_norm_update_stats(x, None, None, 0.0)
    # Without running statistics of a wider dtype the kernel returns bfloat16 statistics.
    mean = x.new_zeros(x.shape[1], dtype=statistics_dtype(x))
    return torch.batch_norm_update_stats(x, mean, torch.zeros_like(mean), 0.0)


def _rows_statistics(x: Tensor, lay: Layout) -> tuple[Tensor, Tensor]:
    if lay.together == 1:
        return _native_statistics(x)
    M, C, k = lay.M, lay.C, lay.together
    if not k:
        return _in_chunks(matrix(x, lay).tensor_split(-(-8 * M // ROWS_CHUNK)))
    # k rows as one of k * C channels, so that every sum is over M / k values
    means, variances = _native_statistics(x.as_strided((M // k, k * C), (k * C, 1)))
    return _merge_equal(means.view(k, C), variances.view(k, C))


def _in_chunks(chunks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The native statistics of chunks, merged."""
    pairs = [_native_statistics(chunk) for chunk in chunks]
    if len(pairs) == 1:
        return pairs[0]
    means, variances = zip(*pairs, strict=True)
    counts = means[0].new_tensor([chunk.numel() for chunk in chunks])
    return _merge(torch.stack(means), torch.stack(variances), counts)


def _merge(means_BC: Tensor, variances_BC: Tensor, counts_B: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of B parts together (Chan, Golub and LeVeque)."""
    share = (counts_B / counts_B.sum()).unsqueeze(1)
    mean = (share * means_BC).sum(0)
    return mean, (share * (variances_BC + (means_BC - mean).square())).sum(0)


def _merge_equal(means_BC: Tensor, variances_BC: Tensor) -> tuple[Tensor, Tensor]:
    """The same for parts of one size."""
    mean = mean_of_rows(means_BC)
    return mean, mean_of_rows((means_BC - mean).square_().add_(variances_BC))


def _blocked_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Planes in float32 or float64, a block of examples at a time.

    The native kernel sums contiguous float32 one value after the other in float64. Here a block is
    centred at its own mean and the backward kernel, which is vectorised, gives the sum and the sum
    of squares of what is left in one pass: neither loses digits to a mean far from zero.
    """
    x = x.view(*x.shape[:2], -1)
    N, C, L = x.shape
    size = max(1, min(N, BLOCK_BYTES // (C * L * x.element_size())))
    one, zero = x.new_ones(C), x.new_zeros(C)
    centred = torch.empty_like(x[:size])
    counts, means, sums, squares = [], [], [], []
    for block in x.split(size):
        y = centred[: len(block)]
        mean = block.mean((0, 2))
        torch.sub(block, mean.view(C, 1), out=y)
        square, total = reduce(y, y, zero, one)
        counts.append(len(block) * L)
        means.append(mean)
        sums.append(total)
        squares.append(square)
    count = x.new_tensor(counts)
    rest = torch.stack(sums) / count.unsqueeze(1)
    var = torch.stack(squares) / count.unsqueeze(1) - rest.square()
    return _merge(torch.stack(means) + rest, var.clamp_min_(0), count)


def reduce(g: Tensor, x: Tensor, mean: Tensor, one: Tensor) -> tuple[Tensor, Tensor]:
    """Per channel: sum of ``g * (x - mean)`` and sum of ``g``."""
    mask = [False, True, True]
    _, product, total = aten.native_batch_norm_backward(g, x, one, None, None, mean, one, True, 0.0, mask)
    return product, total


# ---- the affine map and its gradients ------------------------------------------------------------


def affine(x: Tensor, mean, var, inv, weight, bias, _, lay: Layout) -> Tensor:
    """``(x - mean) * inv * weight + bias``, all (C) or (G, C); inv is 1 / sqrt(var)."""
    if lay.groups == 1:
        if lay.plain:
            slope = weight * inv
            return slope_offset(x, slope, torch.addcmul(bias, mean, slope, value=-1), lay)
        return torch.native_batch_norm(x, weight, bias, mean, var, False, 0.0, 0.0)[0]
    # A new tensor, never a view: autograd refuses an in-place ReLU on a view out of a Function.
    y = torch.empty_like(x)
    for part, m, v, w, b, out in zip(split(x, lay), mean, var, weight, bias, split(y, lay), strict=True):
        scale_shift(part, m, v, w, b, out)
    return y


def slope_offset(x: Tensor, slope: Tensor, offset: Tensor, lay: Layout) -> Tensor:
    """``x * slope + offset``, both (C) or (G, C), in plain operations."""
    if lay.in_rows and lay.groups == 1:
        return torch.addcmul(offset.view(lay.channel), x, slope.view(lay.channel))
    y = torch.empty_like(x)
    torch.addcmul(columns(offset, lay), matrix(x, lay), columns(slope, lay), out=matrix(y, lay))
    return y


def gradients(g: Tensor, x: Tensor, mean, inv, weight, need_x: bool, lay: Layout):
    """dL/dx, and dL/d(weight), dL/d(bias) of batchnorm with that weight, all (C) or (G, C)."""
    if lay.groups == 1:
        return _gradients(g, x, weight, mean, inv, need_x)
    gx = torch.empty_like(x) if need_x else None
    g_weight, g_bias = torch.empty_like(mean), torch.empty_like(mean)
    parts = zip(split(g, lay), split(x, lay), weight, mean, inv, strict=True)
    outs = split(gx, lay) if gx is not None else []
    for k, part in enumerate(parts):
        gk, g_weight[k], g_bias[k] = _gradients(*part, need_x)
        if gx is not None:
            outs[k].copy_(gk)
    return gx, g_weight, g_bias


def _gradients(g: Tensor, x: Tensor, weight, mean, inv, need_x: bool):
    mask = [need_x, True, True]
    return aten.native_batch_norm_backward(g, x, weight, None, None, mean, inv, True, 0.0, mask)


def scale_shift(x: Tensor, mean, var, weight, bias, out: Tensor) -> None:
    unused = mean.new_empty(0)
    torch.native_batch_norm(x, weight, bias, mean, var, False, 0.0, 0.0, out=(out, unused, unused))
