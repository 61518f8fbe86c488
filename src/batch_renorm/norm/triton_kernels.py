"""The Triton kernels that :mod:`fused` launches; names and suffixes as there.

A tensor in rows is (G, M, C). A program of a reduction handles a split, `rows` rows of a group; a program of the
elementwise step handles a tile of BM rows; both handle BC channels. Arithmetic is float32 for every dtype.

A reduction keeps a separate sum for each place of the tile and adds these sums after its last tile: threads
do not wait for each other in between, and each sum has few values.
"""

import triton
import triton.language as tl


@triton.jit
def tile(group, first, stop, M, C, c, BM: tl.constexpr):
    """Of rows from `first` on of a (G, M, C) tensor: where their elements are, and which exist, (BM, BC) each."""
    m = first + tl.arange(0, BM)
    return (group * M + m)[:, None] * C + c[None, :], (m < stop)[:, None] & (c < C)[None, :]


@triton.jit
def load(tensor, place, exists, other=0.0):
    return tl.load(tensor + place, mask=exists, other=other).to(tl.float32)


@triton.jit
def statistics(x, means_GSC, squares_GSC, M, C, rows, splits, BM: tl.constexpr, BC: tl.constexpr):
    """Mean and sum of squared deviations of a split (Welford's method for every place of the tile, then Chan's)."""
    group, split = tl.program_id(0) // splits, tl.program_id(0) % splits
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    start = split * rows
    stop = tl.minimum(start + rows, M)
    means = tl.zeros((BM, BC), tl.float32)
    squares = tl.zeros((BM, BC), tl.float32)
    seen = 0.0
    for first in range(start, stop, BM):
        place, exists = tile(group, first, stop, M, C, c, BM)
        values = load(x, place, exists)
        seen += 1.0
        step = tl.where(exists, values - means, 0.0)
        means += step * (1.0 / seen)
        squares += step * tl.where(exists, values - means, 0.0)
    count = (tl.maximum(stop - start - tl.arange(0, BM) + BM - 1, 0) // BM).to(tl.float32)[:, None]
    mean = tl.sum(means * count, 0) / (stop - start)
    rest = means - mean[None, :]
    out = tl.program_id(0) * C + c
    tl.store(means_GSC + out, mean, mask=c < C)
    tl.store(squares_GSC + out, tl.sum(squares + rest * rest * count, 0), mask=c < C)


@triton.jit
def settle(
    means_GSC, squares_GSC, mu, sigma, gamma, beta, rmax, dmax, mu_b, sigma_b, r, d, slope, bias, eps,
    M, C, rows, splits, BS: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Statistics of a group from its splits; r and d; y = (x - mu_b) * slope + bias."""
    group = tl.program_id(0)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    place, exists = tile(group, 0, splits, splits, C, c, BS)
    count = tl.maximum(tl.minimum(M - tl.arange(0, BS) * rows, rows), 0).to(tl.float32)[:, None]
    means = load(means_GSC, place, exists)
    mean = tl.sum(means * (count / M), 0)
    step = means - mean[None, :]
    spread = tl.sqrt(tl.sum(load(squares_GSC, place, exists) + step * step * count, 0) / M + eps)
    real = c < C
    old_spread, old_mean = load(sigma, c, real, 1.0), load(mu, c, real)
    largest, farthest = tl.load(rmax).to(tl.float32), tl.load(dmax).to(tl.float32)
    scale = tl.minimum(tl.maximum(spread / old_spread, 1.0 / largest), largest)
    shift = tl.minimum(tl.maximum((mean - old_mean) / old_spread, -farthest), farthest)
    out = group * C + c
    tl.store(mu_b + out, mean, mask=real)
    tl.store(sigma_b + out, spread, mask=real)
    tl.store(r + out, scale, mask=real)
    tl.store(d + out, shift, mask=real)
    if gamma is not None:
        weight = load(gamma, c, real)
        scale, shift = scale * weight, shift * weight
    if beta is not None:
        shift += load(beta, c, real)
    tl.store(slope + out, scale / spread, mask=real)
    tl.store(bias + out, shift, mask=real)


@triton.jit
def backward_sums(g, x, mu_b, totals_GSC, products_GSC, M, C, rows, splits, BM: tl.constexpr, BC: tl.constexpr):
    """Sums over a split of g and of g * (x - mu_b)."""
    group, split = tl.program_id(0) // splits, tl.program_id(0) % splits
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    start = split * rows
    stop = tl.minimum(start + rows, M)
    mean = load(mu_b, group * C + c, c < C)[None, :]
    totals = tl.zeros((BM, BC), tl.float32)
    products = tl.zeros((BM, BC), tl.float32)
    for first in range(start, stop, BM):
        place, exists = tile(group, first, stop, M, C, c, BM)
        grad = load(g, place, exists)
        totals += grad
        products += grad * (load(x, place, exists) - mean)
    out = tl.program_id(0) * C + c
    tl.store(totals_GSC + out, tl.sum(totals, 0), mask=c < C)
    tl.store(products_GSC + out, tl.sum(products, 0), mask=c < C)


@triton.jit
def backward_settle(
    totals_GSC, products_GSC, sigma_b, r, d, slope, tilt, offset, g_gamma, g_beta,
    M, C, rows, splits, BS: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """dL/d(gamma) and dL/d(beta) of a group; dL/dx = slope * g + tilt * (x - mu_b) + offset."""
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    place, exists = tile(tl.program_id(0), 0, splits, splits, C, c, BS)
    total = tl.sum(load(totals_GSC, place, exists), 0)
    product = tl.sum(load(products_GSC, place, exists), 0)
    out, real = tl.program_id(0) * C + c, c < C
    spread, scale = load(sigma_b, out, real, 1.0), load(slope, out, real)
    normalised = product / spread
    tl.store(tilt + out, -scale * normalised / (spread * M), mask=real)
    tl.store(offset + out, -scale * total / M, mask=real)
    tl.store(g_gamma + out, normalised * load(r, out, real) + total * load(d, out, real), mask=real)
    tl.store(g_beta + out, total, mask=real)


@triton.jit
def apply(x, y, mu_b, slope, bias, g, g_slope, M, C, rows, splits, BM: tl.constexpr, BC: tl.constexpr):
    """y = (x - mu_b) * slope + bias, and in backward, where there is a g, + g * g_slope."""
    tiles = tl.cdiv(M, BM)
    group = tl.program_id(0) // tiles
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    place, exists = tile(group, tl.program_id(0) % tiles * BM, M, M, C, c, BM)
    vector, real = group * C + c, c < C
    centred = load(x, place, exists) - load(mu_b, vector, real)[None, :]
    out = centred * load(slope, vector, real)[None, :] + load(bias, vector, real)[None, :]
    if g is not None:
        out += load(g, place, exists) * load(g_slope, vector, real)[None, :]
    tl.store(y + place, out.to(y.dtype.element_ty), mask=exists)
