"""The Triton kernels that :mod:`fused` launches; names and suffixes as there.

A tensor in rows is (G, M, C). A program of a reduction handles a split, `rows` rows of a group; a program of an
elementwise step handles a tile of BM rows; both handle BC channels. Arithmetic is float32 for every dtype.

A reduction keeps a separate sum for each place of the tile and adds these sums after its last tile: threads
do not wait for each other in between, and each sum has few values.
"""

import triton
import triton.language as tl


@triton.jit
def statistics(x, means_SGC, squares_SGC, groups, M, C, rows, splits, BM: tl.constexpr, BC: tl.constexpr):
    """Mean and sum of squared deviations of a split (Welford's method for every place of the tile, then Chan's)."""
    group, split = tl.program_id(0) // splits, tl.program_id(0) % splits
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    start = split * rows
    stop = tl.minimum(start + rows, M)
    means = tl.zeros((BM, BC), tl.float32)
    squares = tl.zeros((BM, BC), tl.float32)
    seen = 0.0
    for first in range(start, stop, BM):
        m = first + tl.arange(0, BM)
        inside = (m < stop)[:, None] & (c < C)[None, :]
        values = tl.load(x + (group * M + m)[:, None] * C + c[None, :], mask=inside, other=0.0).to(tl.float32)
        seen += 1.0
        step = tl.where(inside, values - means, 0.0)
        means += step * (1.0 / seen)
        squares += step * tl.where(inside, values - means, 0.0)
    count = (tl.maximum(stop - start - tl.arange(0, BM) + BM - 1, 0) // BM).to(tl.float32)[:, None]
    mean = tl.sum(means * count, 0) / (stop - start)
    rest = means - mean[None, :]
    place = (split * groups + group) * C + c
    tl.store(means_SGC + place, mean, mask=c < C)
    tl.store(squares_SGC + place, tl.sum(squares + rest * rest * count, 0), mask=c < C)


@triton.jit
def settle(
    means_SGC, squares_SGC, mu, sigma, gamma, beta, rmax, dmax,
    mu_b, sigma_b, r, d, slope, bias,
    groups, M, C, rows, splits, eps,
    GAMMA: tl.constexpr, BETA: tl.constexpr, BS: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Statistics of a group from its splits; r and d; y = (x - mu_b) * slope + bias."""
    group = tl.program_id(0)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    s = tl.arange(0, BS)
    inside = (s < splits)[:, None] & (c < C)[None, :]
    place = (s * groups + group)[:, None] * C + c[None, :]
    count = tl.maximum(tl.minimum(M - s * rows, rows), 0).to(tl.float32)[:, None]
    means = tl.load(means_SGC + place, mask=inside, other=0.0)
    squares = tl.load(squares_SGC + place, mask=inside, other=0.0)
    mean = tl.sum(means * (count / M), 0)
    step = means - mean[None, :]
    spread = tl.sqrt(tl.sum(squares + step * step * count, 0) / M + eps)
    real = c < C
    old_spread = tl.load(sigma + c, mask=real, other=1.0).to(tl.float32)
    old_mean = tl.load(mu + c, mask=real, other=0.0).to(tl.float32)
    largest, farthest = tl.load(rmax).to(tl.float32), tl.load(dmax).to(tl.float32)
    scale = tl.minimum(tl.maximum(spread / old_spread, 1.0 / largest), largest)
    shift = tl.minimum(tl.maximum((mean - old_mean) / old_spread, -farthest), farthest)
    out = group * C + c
    tl.store(mu_b + out, mean, mask=real)
    tl.store(sigma_b + out, spread, mask=real)
    tl.store(r + out, scale, mask=real)
    tl.store(d + out, shift, mask=real)
    if GAMMA:
        weight = tl.load(gamma + c, mask=real, other=1.0).to(tl.float32)
        scale, shift = scale * weight, shift * weight
    if BETA:
        shift += tl.load(beta + c, mask=real, other=0.0).to(tl.float32)
    tl.store(slope + out, scale / spread, mask=real)
    tl.store(bias + out, shift, mask=real)


@triton.jit
def apply(x, y, mu_b, slope, bias, M, C, BM: tl.constexpr, BC: tl.constexpr):
    tiles = tl.cdiv(M, BM)
    group = tl.program_id(0) // tiles
    m = (tl.program_id(0) % tiles) * BM + tl.arange(0, BM)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = (m < M)[:, None] & (c < C)[None, :]
    place = (group * M + m)[:, None] * C + c[None, :]
    vector, real = group * C + c, c < C
    mean = tl.load(mu_b + vector, mask=real, other=0.0)[None, :]
    scale = tl.load(slope + vector, mask=real, other=0.0)[None, :]
    shift = tl.load(bias + vector, mask=real, other=0.0)[None, :]
    out = (tl.load(x + place, mask=inside, other=0.0).to(tl.float32) - mean) * scale + shift
    tl.store(y + place, out.to(y.dtype.element_ty), mask=inside)


@triton.jit
def backward_sums(g, x, mu_b, totals_SGC, products_SGC, groups, M, C, rows, splits, BM: tl.constexpr, BC: tl.constexpr):
    """Sums over a split of g and of g * (x - mu_b)."""
    group, split = tl.program_id(0) // splits, tl.program_id(0) % splits
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    start = split * rows
    stop = tl.minimum(start + rows, M)
    mean = tl.load(mu_b + group * C + c, mask=c < C, other=0.0)[None, :]
    totals = tl.zeros((BM, BC), tl.float32)
    products = tl.zeros((BM, BC), tl.float32)
    for first in range(start, stop, BM):
        m = first + tl.arange(0, BM)
        inside = (m < stop)[:, None] & (c < C)[None, :]
        place = (group * M + m)[:, None] * C + c[None, :]
        grad = tl.load(g + place, mask=inside, other=0.0).to(tl.float32)
        centred = tl.load(x + place, mask=inside, other=0.0).to(tl.float32) - mean
        totals += grad
        products += grad * centred
    out = (split * groups + group) * C + c
    tl.store(totals_SGC + out, tl.sum(totals, 0), mask=c < C)
    tl.store(products_SGC + out, tl.sum(products, 0), mask=c < C)


@triton.jit
def backward_settle(
    totals_SGC, products_SGC, sigma_b, r, d, slope, tilt, offset, g_gamma, g_beta,
    groups, M, C, splits, BS: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """dL/d(gamma) and dL/d(beta) of a group, and the coefficients of dL/dx."""
    group = tl.program_id(0)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    s = tl.arange(0, BS)
    inside = (s < splits)[:, None] & (c < C)[None, :]
    place = (s * groups + group)[:, None] * C + c[None, :]
    total = tl.sum(tl.load(totals_SGC + place, mask=inside, other=0.0), 0)
    product = tl.sum(tl.load(products_SGC + place, mask=inside, other=0.0), 0)
    out, real = group * C + c, c < C
    spread = tl.load(sigma_b + out, mask=real, other=1.0)
    scale = tl.load(slope + out, mask=real, other=0.0)
    normalised = product / spread
    tl.store(tilt + out, -scale * normalised / (spread * M), mask=real)
    tl.store(offset + out, -scale * total / M, mask=real)
    r_, d_ = tl.load(r + out, mask=real, other=0.0), tl.load(d + out, mask=real, other=0.0)
    tl.store(g_gamma + out, normalised * r_ + total * d_, mask=real)
    tl.store(g_beta + out, total, mask=real)


@triton.jit
def backward_apply(g, x, gx, mu_b, slope, tilt, offset, M, C, BM: tl.constexpr, BC: tl.constexpr):
    """dL/dx = slope * g + tilt * (x - mu_b) + offset."""
    tiles = tl.cdiv(M, BM)
    group = tl.program_id(0) // tiles
    m = (tl.program_id(0) % tiles) * BM + tl.arange(0, BM)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = (m < M)[:, None] & (c < C)[None, :]
    place = (group * M + m)[:, None] * C + c[None, :]
    vector, real = group * C + c, c < C
    mean = tl.load(mu_b + vector, mask=real, other=0.0)[None, :]
    scale = tl.load(slope + vector, mask=real, other=0.0)[None, :]
    by_x = tl.load(tilt + vector, mask=real, other=0.0)[None, :]
    constant = tl.load(offset + vector, mask=real, other=0.0)[None, :]
    grad = tl.load(g + place, mask=inside, other=0.0).to(tl.float32)
    centred = tl.load(x + place, mask=inside, other=0.0).to(tl.float32) - mean
    out = scale * grad + (by_x * centred + constant)
    tl.store(gx + place, out.to(gx.dtype.element_ty), mask=inside)
