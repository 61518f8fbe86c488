"""The native batchnorm kernels, arranged for groups of consecutive examples.

With r and d held constant Batch Renormalization is batchnorm with weight ``gamma * r`` and bias
``beta + gamma * d``, so forward and backward are the kernels behind ``nn.BatchNorm2d``. What is
added here is the statistics, where those kernels are slow or inaccurate on CPU, and the groups.

A tensor has one of two memory orders, and every function below knows both:

* *planes*: ``(N, C, L)`` contiguous, one image plane after the other;
* *rows*: channels innermost (channels_last, or a plain ``(N, C)`` matrix), seen as the
  channels_last tensor ``(groups, C, rows of a group, 1)``.

Suffixes name the axes: G groups, M values of a channel in a group, N examples, C channels,
L positions in an example, P = N * C planes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

aten = torch.ops.aten
HALF = (torch.float16, torch.bfloat16)

# Elements from which the blocked statistics of planes, and plain operations for the affine map of
# rows, are faster than the native kernel, and bytes of a block of planes (about an L2 cache, so that
# centring and squaring read it from there).
BLOCKED_FROM = 250_000
PLAIN_FROM = 250_000
BLOCK_BYTES = 1 << 20
# Values of a channel that may be summed into one float32 accumulator (rows), or into one for each
# vector lane (planes). Over 700,000 values those are off by 3e-4 and 2e-5 of the variance; chunks of
# these sizes, merged, by 2e-6.
ROWS_CHUNK = 8192
# Shorter sums cost nothing while all their accumulators stay in the L1 cache.
ROWS_SUM = 2048
ROWS_WIDE = 1024
PLANES_CHUNK = 1 << 16


def statistics_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def dense(x: Tensor) -> Tensor:
    """``x`` in one of the two memory orders, copied only if it has neither."""
    return x if x.is_contiguous() or in_rows(x) else x.contiguous()


def like(g: Tensor, x: Tensor) -> Tensor:
    """``g`` in the memory order of the dense ``x``."""
    return torch.empty_like(x, dtype=g.dtype).copy_(g) if g.stride() != x.stride() else g


def in_rows(x: Tensor) -> bool:
    if x.dim() == 4 and not x.is_contiguous():
        return x.is_contiguous(memory_format=torch.channels_last)
    if x.dim() == 5 and not x.is_contiguous():
        return x.is_contiguous(memory_format=torch.channels_last_3d)
    return x.is_contiguous() and x.numel() == x.shape[0] * x.shape[1]


def in_large_rows(x: Tensor) -> bool:
    """Whether plain operations are faster than the native kernel in an affine map."""
    return x.numel() > PLAIN_FROM and x.dtype not in HALF and x.device.type == "cpu" and in_rows(x)


def split(x: Tensor, groups: int) -> list[Tensor]:
    """Views of the groups, each in a shape that the native kernels take without a copy."""
    if in_rows(x):
        G, M, C = groups, x.numel() // (groups * x.shape[1]), x.shape[1]
        return list(x.as_strided((G, C, M, 1), (M * C, 1, C, C)).split(1))
    return list(x.split(x.shape[0] // groups))


def rows(x: Tensor, groups: int) -> Tensor:
    """A tensor in rows as (G, M, C)."""
    M, C = x.numel() // (groups * x.shape[1]), x.shape[1]
    return x.as_strided((groups, M, C), (M * C, C, 1))


# ---- mean and biased variance of every channel ---------------------------------------------------


def statistics(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Of shape (G, C); of shape (C) for the whole batch, where handling G would cost time."""
    if groups == 1:
        return _statistics(x)
    means, variances = zip(*map(_statistics, split(x, groups)), strict=True)
    return torch.stack(means), torch.stack(variances)


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    if x.device.type != "cpu":
        return _native_statistics(x)
    if in_rows(x):
        return _rows_statistics(x)
    N, C = x.shape[:2]
    L = x.numel() // (N * C)
    if L > PLANES_CHUNK and x.dim() > 3:
        # Lines as channels, then merged: a plane is too long for one sum.
        mean, var = (t.view(C, -1).t() for t in _statistics(x.flatten(1, 2)))
        return _merge(mean, var, mean.new_ones(x.shape[2]))
    if x.dtype in HALF:
        return _in_chunks(x.split(max(1, PLANES_CHUNK // L)))
    return _blocked_statistics(x) if x.numel() > BLOCKED_FROM else _native_statistics(x)


def _native_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    if x.dtype not in HALF:
        return torch.batch_norm_update_stats(x, None, None, 0.0)
    # Without running statistics of a wider dtype the kernel returns bfloat16 statistics.
    mean = x.new_zeros(x.shape[1], dtype=statistics_dtype(x))
    return torch.batch_norm_update_stats(x, mean, torch.zeros_like(mean), 0.0)


def _rows_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    C = x.shape[1]
    M = x.numel() // C
    if M <= ROWS_CHUNK:
        return _native_statistics(x)
    fewest = max(-(-M // ROWS_CHUNK), min(-(-M // ROWS_SUM), ROWS_WIDE // C))
    for k in range(fewest, 2 * fewest):
        if M % k == 0:  # k rows as one of k * C channels, so that every sum is over M / k values
            means, variances = (t.view(k, C) for t in _native_statistics(x.as_strided((M // k, k * C), (k * C, 1))))
            mean = means.mean(0)
            return mean, (means - mean).square_().add_(variances).mean(0)
    return _in_chunks(x.as_strided((M, C), (C, 1)).tensor_split(-(-M // ROWS_CHUNK)))


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


def affine(x: Tensor, mean, var, inv, weight, bias, eps: float) -> Tensor:
    """``(x - mean) * inv * weight + bias``, all (C) or (G, C); inv is 1 / sqrt(var + eps)."""
    if mean.dim() == 1:
        if in_large_rows(x):
            slope = weight * inv
            return slope_offset(x, slope, torch.addcmul(bias, mean, slope, value=-1))
        return torch.native_batch_norm(x, weight, bias, mean, var, False, 0.0, eps)[0]
    # A new tensor, never a view: autograd refuses an in-place ReLU on a view out of a Function.
    y = torch.empty_like(x)
    groups = mean.shape[0]
    parts, outs = split(x, groups), split(y, groups)
    for part, m, v, w, b, out in zip(parts, mean, var, weight, bias, outs, strict=True):
        scale_shift(part, m, v, w, b, out, eps=eps)
    return y


def slope_offset(x: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    """``x * slope + offset`` of rows, both (C) or (G, C): on CPU in half the time of the native kernel."""
    y = torch.empty_like(x)
    groups = 1
    if slope.dim() == 2:
        groups, slope, offset = len(slope), slope.unsqueeze(1), offset.unsqueeze(1)
    torch.addcmul(offset, rows(x, groups), slope, out=rows(y, groups))
    return y


def gradients(g: Tensor, x: Tensor, mean, inv, weight, need_x: bool):
    """dL/dx, and dL/d(weight), dL/d(bias) of batchnorm with that weight, all (C) or (G, C)."""
    if mean.dim() == 1:
        return _gradients(g, x, weight, mean, inv, need_x)
    gx = torch.empty_like(x) if need_x else None
    groups = mean.shape[0]
    g_weight, g_bias = torch.empty_like(mean), torch.empty_like(mean)
    parts = zip(split(g, groups), split(x, groups), weight, mean, inv, strict=True)
    outs = split(gx, groups) if gx is not None else []
    for k, part in enumerate(parts):
        gk, g_weight[k], g_bias[k] = _gradients(*part, need_x)
        if gx is not None:
            outs[k].copy_(gk)
    return gx, g_weight, g_bias


def _gradients(g: Tensor, x: Tensor, weight, mean, inv, need_x: bool):
    mask = [need_x, True, True]
    return aten.native_batch_norm_backward(g, x, weight, None, None, mean, inv, True, 0.0, mask)


def scale_shift(x: Tensor, mean, var, weight, bias, out: Tensor, eps: float = 0.0) -> None:
    unused = mean.new_empty(0)
    torch.native_batch_norm(x, weight, bias, mean, var, False, 0.0, eps, out=(out, unused, unused))
