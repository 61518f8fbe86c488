"""Batch Renormalization of channels-last tensors on a GPU, in Triton.

Needs the package triton, which torch installs on Linux. Every kernel is launched once for any
number of groups. Forward reads x for the statistics, computes the vectors of C values, and reads x
again to write y; backward likewise. Sums over the rows of a group are cut into splits, which are
stored separately and added in a fixed order: there are no atomics, and equal inputs give equal bits.
Statistics are float32, by Welford's method, merged by that of Chan, Golub and LeVeque, so that neither
a mean far from zero nor many values cost digits.

No GPU has run these kernels yet: tests run them through Triton's interpreter.

Suffixes as in :mod:`kernels`, and S: splits of a group's M rows.
"""

import torch
import triton
from torch import Tensor

from batch_renorm.norm import triton_kernels
from batch_renorm.norm.algorithm1 import derivatives_follow, gradients_of_algorithm1
from batch_renorm.norm.kernels import is_in_rows, like

TILE = 4096  # elements that a program holds at once
# Programs of a reduction: four, as many as fit, on each of an H100's 132 multiprocessors. A constant, so that sums
# do not depend on the device.
PROGRAMS = 512
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def takes(x: Tensor) -> bool:
    """Whether these kernels take a dense tensor."""
    return x.dtype in DTYPES and is_in_rows(x) and x.numel() < 2**31


class Plan:
    """How the kernels divide (G, M, C): for each kind of kernel a grid of programs, and the tile of each of them."""

    def __init__(self, x: Tensor, groups: int) -> None:
        C = x.shape[1]
        M = x.numel() // (groups * C)
        # 64 or 32 channels, whichever leaves less of the last tile empty: rows of at least 64 bytes
        BC = min(64 if -C % 64 <= -C % 32 else 32, triton.next_power_of_2(C))
        BM = min(TILE // BC, triton.next_power_of_2(M))
        tiles, channel_tiles = triton.cdiv(M, BM), triton.cdiv(C, BC)
        rows = BM * triton.cdiv(tiles, min(tiles, triton.cdiv(PROGRAMS, groups * channel_tiles)))
        splits = triton.cdiv(M, rows)
        BS = triton.next_power_of_2(splits)
        few = min(BC, TILE // BS)  # channels: with many splits, few
        self.sizes = M, C, rows, splits
        self.partial_sums = groups, splits, C
        self.reduction = (groups * splits, channel_tiles), {"BM": BM, "BC": BC}
        self.settling = (groups, triton.cdiv(C, few)), {"BS": BS, "BC": few}
        self.elementwise = (groups * tiles, channel_tiles), {"BM": BM, "BC": BC}

    def launch(self, kernel, kind: tuple[tuple[int, int], dict[str, int]], *arguments) -> None:
        grid, tile = kind
        kernel[grid](*arguments, *self.sizes, **tile)


class FusedBatchRenorm(torch.autograd.Function):
    """(x, mu, sigma, gamma, beta, rmax, dmax, eps, groups) -> y, mu_b, sigma_b, for an x that `takes` accepts."""

    @staticmethod
    def forward(ctx, x, mu, sigma, gamma, beta, rmax, dmax, eps, groups):
        rmax, dmax = (t if isinstance(t, Tensor) else x.new_full((), t, dtype=torch.float32) for t in (rmax, dmax))
        plan = Plan(x, groups)
        sums = x.new_empty((2, *plan.partial_sums), dtype=torch.float32).unbind()
        plan.launch(triton_kernels.statistics, plan.reduction, x, *sums)
        # (G, C) each; y = (x - mu_b) * slope + bias
        vectors = mu_b, sigma_b, r, d, slope, bias = [
            x.new_empty((groups, x.shape[1]), dtype=torch.float32) for _ in range(6)
        ]
        plan.launch(triton_kernels.settle, plan.settling, *sums, mu, sigma, gamma, beta, rmax, dmax, *vectors, eps)
        y = torch.empty_like(x)
        plan.launch(triton_kernels.apply, plan.elementwise, x, y, mu_b, slope, bias, None, None)
        ctx.save_for_backward(x, gamma, beta, mu_b, sigma_b, r, d, slope)
        ctx.eps = eps
        ctx.mark_non_differentiable(mu_b, sigma_b)
        ctx.set_materialize_grads(False)
        return y, mu_b, sigma_b

    @staticmethod
    def backward(ctx, g, *_):  # pyright: ignore[reportIncompatibleMethodOverride]
        if g is None:
            return (None,) * 9
        x, gamma, beta, mu_b, sigma_b, r, d, slope = ctx.saved_tensors
        needed = [ctx.needs_input_grad[k] for k in (0, 3, 4)]
        if derivatives_follow(g):
            gx, *parameters = gradients_of_algorithm1(g, (x, gamma, beta), needed, r, d, ctx.eps)
            return gx, None, None, *parameters, *(None,) * 4
        g, plan = like(g, x), Plan(x, len(mu_b))
        sums = x.new_empty((2, *plan.partial_sums), dtype=torch.float32).unbind()
        plan.launch(triton_kernels.backward_sums, plan.reduction, g, x, mu_b, *sums)
        vectors = tilt, offset, g_gamma, g_beta = [torch.empty_like(mu_b) for _ in range(4)]
        plan.launch(triton_kernels.backward_settle, plan.settling, *sums, sigma_b, r, d, slope, *vectors)
        gx = torch.empty_like(x)
        plan.launch(triton_kernels.apply, plan.elementwise, x, gx, mu_b, tilt, offset, g, slope)
        # the sums over the groups, which autograd converts to the parameter's dtype
        parameters = [t.sum(0) if need else None for t, need in zip((g_gamma, g_beta), needed[1:], strict=True)]
        return gx, None, None, *parameters, *(None,) * 4
