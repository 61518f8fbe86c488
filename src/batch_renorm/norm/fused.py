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

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from batch_renorm.norm import triton_kernels
from batch_renorm.norm.kernels import derivatives_follow, forbid_recompute, is_in_rows, like, plain_gradients

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


class Forward(NamedTuple):
    """y = (x - mu_b) * slope + bias, and the statistics, r, d, slope and bias, (G, C) float32."""

    y: Tensor
    mu_b: Tensor
    sigma_b: Tensor
    r: Tensor
    d: Tensor
    slope: Tensor
    bias: Tensor


def forward(x, mu, sigma, gamma, beta, rmax: Tensor, dmax: Tensor, eps: float, groups: int, relu: bool) -> Forward:
    """Algorithm 1 on a tensor that :func:`takes` accepts; rmax and dmax are on its device."""
    p = plan(x, groups)
    tile = {"BM": p.tile_rows, "BC": p.tile_channels}
    parts = x.new_empty((2, p.splits, groups, p.C), dtype=torch.float32)
    triton_kernels.statistics[p.reduction](x, parts[0], parts[1], groups, p.M, p.C, p.split_rows, p.splits, **tile)
    small = per_group(x, groups)
    mu_b, slope, bias = small[0], small[4], small[5]
    settling, programs = p.settling
    triton_kernels.settle[programs](
        parts[0], parts[1], mu, sigma, gamma, beta, rmax, dmax, *small,
        groups, p.M, p.C, p.split_rows, p.splits, eps,
        GAMMA=gamma is not None, BETA=beta is not None, **settling,
    )  # fmt: skip
    y = torch.empty_like(x)
    triton_kernels.apply[p.elementwise](x, y, mu_b, slope, bias, p.M, p.C, RELU=relu, **tile)
    return Forward(y, *small)


def per_group(x: Tensor, groups: int) -> list[Tensor]:
    """Tensors for Forward's fields after y; not views of one tensor, which an operation may not return."""
    return [x.new_empty((groups, x.shape[1]), dtype=torch.float32) for _ in range(6)]


def backward(g: Tensor, x: Tensor, found: list[Tensor], relu: bool) -> tuple[Tensor, Tensor, Tensor]:
    """dL/dx, and dL/d(gamma) and dL/d(beta) of every group, (G, C); `found` has Forward's fields after y."""
    mu_b, sigma_b, r, d, slope, bias = found
    groups = len(mu_b)
    p = plan(x, groups)
    tile = {"BM": p.tile_rows, "BC": p.tile_channels}
    parts = x.new_empty((2, p.splits, groups, p.C), dtype=torch.float32)
    triton_kernels.backward_sums[p.reduction](
        g, x, mu_b, slope, bias, parts[0], parts[1], groups, p.M, p.C, p.split_rows, p.splits, RELU=relu, **tile
    )
    tilt, offset = x.new_empty((2, groups, p.C), dtype=torch.float32).unbind()
    g_gamma, g_beta = torch.empty_like(mu_b), torch.empty_like(mu_b)
    settling, programs = p.settling
    triton_kernels.backward_settle[programs](
        parts[0], parts[1], sigma_b, r, d, slope, tilt, offset, g_gamma, g_beta, groups, p.M, p.C, p.splits, **settling
    )
    gx = torch.empty_like(x)
    triton_kernels.backward_apply[p.elementwise](
        g, x, gx, mu_b, slope, bias, tilt, offset, p.M, p.C, RELU=relu, **tile
    )  # fmt: skip
    return gx, g_gamma, g_beta


@torch.no_grad()
def outputs(x: Tensor, found: list[Tensor]) -> Tensor:
    """The outputs before the ReLU, float32."""
    mu_b, _, _, _, slope, bias = (t.view(len(t), 1, -1, *(1,) * (x.dim() - 2)) for t in found)
    return ((x.unflatten(0, (len(mu_b), -1)) - mu_b) * slope + bias).flatten(0, 1)


class FusedBatchRenorm(torch.autograd.Function):
    """The eager route: (x, mu, sigma, gamma, beta, rmax, dmax, eps, groups, relu) -> y, mu_b, sigma_b."""

    @staticmethod
    def forward(ctx, x, mu, sigma, gamma, beta, rmax, dmax, eps, groups, relu):
        rmax, dmax = (limit_tensor(t, x) for t in (rmax, dmax))
        y, *found = forward(x, mu, sigma, gamma, beta, rmax, dmax, eps, groups, relu)
        ctx.save_for_backward(x, gamma, *found)
        ctx.relu, ctx.eps = relu, eps
        ctx.mark_non_differentiable(found[0], found[1])
        ctx.set_materialize_grads(False)
        return y, found[0], found[1]

    @staticmethod
    def backward(ctx, g, *_):  # pyright: ignore[reportIncompatibleMethodOverride]
        if g is None:
            return (None,) * 10
        x, gamma, *found = ctx.saved_tensors
        if derivatives_follow(g):
            needed = ctx.needs_input_grad[0], *ctx.needs_input_grad[3:5]
            if ctx.relu:
                g = g * (outputs(x, found) > 0)
            gx, *parameters = plain_gradients(g, x, gamma, found[2], found[3], ctx.eps, needed)
            return gx, None, None, *parameters, *(None,) * 5
        gx, *rest = backward(like(g, x), x, found, ctx.relu)
        return gx, None, None, *_parameter_gradients(rest, ctx.needs_input_grad[3:5]), *(None,) * 5


def _parameter_gradients(of_groups: Sequence[Tensor], needed: Sequence[bool]) -> list[Tensor | None]:
    """The sums over the groups; autograd converts them to the parameter's dtype."""
    return [t.sum(0) if need else None for t, need in zip(of_groups, needed, strict=True)]


def limit_tensor(limit: float | Tensor, x: Tensor) -> Tensor:
    return limit if isinstance(limit, Tensor) else x.new_full((), limit, dtype=torch.float32)


# ---- under torch.compile: operations that the compiler keeps as they are -------------------------


@torch.library.custom_op("batch_renorm::forward", mutates_args=())
def forward_op(
    x: Tensor, mu: Tensor, sigma: Tensor, gamma: Tensor | None, beta: Tensor | None,
    rmax: Tensor, dmax: Tensor, eps: float, groups: int, relu: bool, moves: bool,
) -> list[Tensor]:  # fmt: skip
    forbid_recompute(moves)
    return list(forward(x, mu, sigma, gamma, beta, rmax, dmax, eps, groups, relu))


@forward_op.register_fake
def _(x, mu, sigma, gamma, beta, rmax, dmax, eps, groups, relu, moves):
    small = per_group(x, groups)
    return [torch.empty_like(x), *small]


@torch.library.custom_op("batch_renorm::backward", mutates_args=())
def backward_op(g: Tensor, x: Tensor, found: list[Tensor], relu: bool) -> list[Tensor]:
    return list(backward(like(g, x), x, found, relu))


@backward_op.register_fake
def _(g, x, found, relu):
    return [torch.empty_like(x), torch.empty_like(found[0]), torch.empty_like(found[0])]


def _setup(ctx, inputs, output) -> None:
    x, *_, ctx.relu, _ = inputs
    ctx.save_for_backward(x, *output[1:])


def _backward(ctx, grads):
    x, *found = ctx.saved_tensors
    gx, *rest = backward_op(grads[0], x, found, ctx.relu)
    return gx, None, None, *_parameter_gradients(rest, ctx.needs_input_grad[3:5]), *(None,) * 6


forward_op.register_autograd(_backward, setup_context=_setup)


def compiled(x, mu, sigma, gamma, beta, rmax, dmax, eps, groups, relu, moves=False):
    """The route for torch.compile that keeps these kernels; arguments and results as in the eager route."""
    rmax, dmax = (limit_tensor(t, x) for t in (rmax, dmax))
    y, mu_b, sigma_b, *_ = forward_op(x, mu, sigma, gamma, beta, rmax, dmax, eps, groups, relu, moves)
    return y, mu_b.detach(), sigma_b.detach()
