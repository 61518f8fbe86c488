"""Batch Renormalization of channels-last tensors on a GPU, in Triton, optionally followed by ReLU.

Needs the package triton, which torch installs on Linux. Every kernel is launched once for any
number of groups. Forward reads x for the statistics, computes the vectors of C values, and reads x
again to write y; backward likewise. Sums over the rows of a group are cut into splits, which are
stored separately and added in a fixed order: there are no atomics, and equal inputs give equal bits.
Statistics are float32, by Welford's method, merged by that of Chan, Golub and LeVeque, so that neither
a mean far from zero nor many values cost digits.

No GPU has run these kernels yet: tests run them through Triton's interpreter.

Suffixes as in :mod:`kernels`, and S: splits of a group's M rows.
"""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from batch_renorm.norm import triton_kernels
from batch_renorm.norm.kernels import derivatives_follow, is_in_rows, like, plain_gradients

TILE = 4096  # elements that a program holds at once
# Programs of a reduction: four, as many as fit, on each of an H100's 132 multiprocessors. A constant, so that sums
# do not depend on the device.
PROGRAMS = 512
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def takes(x: Tensor) -> bool:
    """Whether these kernels take a dense tensor."""
    return x.dtype in DTYPES and is_in_rows(x) and x.numel() < 2**31


class Plan(NamedTuple):
    """How the kernels divide (G, M, C)."""

    groups: int
    M: int
    C: int
    tile_rows: int
    tile_channels: int
    split_rows: int

    @property
    def splits(self) -> int:
        return triton.cdiv(self.M, self.split_rows)

    @property
    def channel_tiles(self) -> int:
        return triton.cdiv(self.C, self.tile_channels)

    @property
    def reduction(self) -> tuple[int, int]:
        return self.groups * self.splits, self.channel_tiles

    @property
    def elementwise(self) -> tuple[int, int]:
        return self.groups * triton.cdiv(self.M, self.tile_rows), self.channel_tiles

    @property
    def settling(self) -> tuple[dict[str, int], tuple[int, int]]:
        """Tile and grid of the kernel that adds the splits: with many splits, few channels per program."""
        BS = triton.next_power_of_2(self.splits)
        BC = min(self.tile_channels, TILE // BS)
        return {"BS": BS, "BC": BC}, (self.groups, triton.cdiv(self.C, BC))


def plan(x: Tensor, groups: int) -> Plan:
    C = x.shape[1]
    M = x.numel() // (groups * C)
    # 64 or 32 channels, whichever leaves less of the last tile empty: rows of at least 64 bytes
    tile_channels = min(64 if -C % 64 <= -C % 32 else 32, triton.next_power_of_2(C))
    tile_rows = min(TILE // tile_channels, triton.next_power_of_2(M))
    tiles = triton.cdiv(M, tile_rows)
    splits = min(tiles, triton.cdiv(PROGRAMS, groups * triton.cdiv(C, tile_channels)))
    return Plan(groups, M, C, tile_rows, tile_channels, tile_rows * triton.cdiv(tiles, splits))


class Vectors(NamedTuple):
    """What the kernels compute for every group and channel, (G, C) float32; y = (x - mu_b) * slope + bias."""

    mu_b: Tensor
    sigma_b: Tensor
    r: Tensor
    d: Tensor
    slope: Tensor
    bias: Tensor


class FusedBatchRenorm(torch.autograd.Function):
    """(x, mu, sigma, gamma, beta, rmax, dmax, eps, groups, relu) -> y, mu_b, sigma_b, for an x that `takes` accepts."""

    @staticmethod
    def forward(ctx, x, mu, sigma, gamma, beta, rmax, dmax, eps, groups, relu):
        rmax, dmax = (t if isinstance(t, Tensor) else x.new_full((), t, dtype=torch.float32) for t in (rmax, dmax))
        p = plan(x, groups)
        tile = {"BM": p.tile_rows, "BC": p.tile_channels}
        parts = x.new_empty((2, p.splits, groups, p.C), dtype=torch.float32)
        triton_kernels.statistics[p.reduction](x, parts[0], parts[1], groups, p.M, p.C, p.split_rows, p.splits, **tile)
        v = Vectors(*[x.new_empty((groups, p.C), dtype=torch.float32) for _ in Vectors._fields])
        settling, programs = p.settling
        triton_kernels.settle[programs](
            parts[0], parts[1], mu, sigma, gamma, beta, rmax, dmax, *v,
            groups, p.M, p.C, p.split_rows, p.splits, eps,
            GAMMA=gamma is not None, BETA=beta is not None, **settling,
        )  # fmt: skip
        y = torch.empty_like(x)
        triton_kernels.apply[p.elementwise](x, y, v.mu_b, v.slope, v.bias, p.M, p.C, RELU=relu, **tile)
        ctx.save_for_backward(x, gamma, *v)
        ctx.relu, ctx.eps = relu, eps
        ctx.mark_non_differentiable(v.mu_b, v.sigma_b)
        ctx.set_materialize_grads(False)
        return y, v.mu_b, v.sigma_b

    @staticmethod
    def backward(ctx, g, *_):  # pyright: ignore[reportIncompatibleMethodOverride]
        if g is None:
            return (None,) * 10
        x, gamma, *saved = ctx.saved_tensors
        v = Vectors(*saved)
        needed = ctx.needs_input_grad[3:5]
        if derivatives_follow(g):
            if ctx.relu:
                g = g * (before_relu(x, v) > 0)
            gx, *parameters = plain_gradients(g, x, gamma, v.r, v.d, ctx.eps, (ctx.needs_input_grad[0], *needed))
            return gx, None, None, *parameters, *(None,) * 5
        gx, *sums = gradients(like(g, x), x, v, ctx.relu)
        # the sums over the groups, which autograd converts to the parameter's dtype
        parameters = [t.sum(0) if need else None for t, need in zip(sums, needed, strict=True)]
        return gx, None, None, *parameters, *(None,) * 5


def gradients(g: Tensor, x: Tensor, v: Vectors, relu: bool) -> tuple[Tensor, Tensor, Tensor]:
    """dL/dx, and dL/d(gamma) and dL/d(beta) of every group, (G, C)."""
    groups = len(v.mu_b)
    p = plan(x, groups)
    tile = {"BM": p.tile_rows, "BC": p.tile_channels}
    parts = x.new_empty((2, p.splits, groups, p.C), dtype=torch.float32)
    affine = v.mu_b, v.slope, v.bias
    triton_kernels.backward_sums[p.reduction](
        g, x, *affine, parts[0], parts[1], groups, p.M, p.C, p.split_rows, p.splits, RELU=relu, **tile
    )
    tilt, offset, g_gamma, g_beta = (torch.empty_like(v.mu_b) for _ in range(4))
    settling, programs = p.settling
    triton_kernels.backward_settle[programs](
        parts[0], parts[1], v.sigma_b, v.r, v.d, v.slope, tilt, offset, g_gamma, g_beta,
        groups, p.M, p.C, p.splits, **settling,
    )  # fmt: skip
    gx = torch.empty_like(x)
    triton_kernels.backward_apply[p.elementwise](g, x, gx, *affine, tilt, offset, p.M, p.C, RELU=relu, **tile)
    return gx, g_gamma, g_beta


@torch.no_grad()
def before_relu(x: Tensor, v: Vectors) -> Tensor:
    """The outputs before the ReLU, float32."""
    mu_b, slope, bias = (t.view(len(t), 1, -1, *(1,) * (x.dim() - 2)) for t in (v.mu_b, v.slope, v.bias))
    return ((x.unflatten(0, (len(mu_b), -1)) - mu_b) * slope + bias).flatten(0, 1)
