"""Batch Renormalization outside torch.compile: forward and backward in few calls, for one group or many.

With constant r and d it is batchnorm with weight ``gamma * r`` and bias ``beta + gamma * d``, which the kernels of
``nn.BatchNorm2d`` compute for one group. Plain operations take several groups at once; only the sums of large
channels-last groups on a CPU are faster by a native call for each group.

Suffixes name the axes: G groups, M rows of a group's matrix, K its columns, C channels.
"""

import torch
from torch import Tensor

from batch_renorm.norm.algorithm1 import correction, derivatives_follow, gradients_of_algorithm1, in_dtype

native_backward, ALL, SUMS = torch.ops.aten.native_batch_norm_backward, [True, True, True], [False, True, True]
HALF = (torch.float16, torch.bfloat16)
# On a CPU, sums by a native call for each group are faster from this number of elements in a group on.
NATIVE_FROM = 50_000
# Most values of a channel in one float32 accumulator of the native kernel for channels-last tensors on a CPU. With
# 700,000 values in one accumulator the variance has a relative error of 3e-4; with merged chunks of this size, 4e-6.
CHUNK = 1 << 12
# From this number of values in a plane on, native sums of half precision are faster than sums of a float32 copy.
PLANE_FROM = 256
# Most values of a plane of half precision in one accumulator, which has eight lanes: an error of 2e-6.
PLANE = 1 << 16


def is_in_rows(x: Tensor) -> bool:
    """Whether channels are innermost: channels_last, or a plain (N, C) matrix."""
    if x.is_contiguous():
        return x.numel() == x.shape[0] * x.shape[1]
    order = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    return order is not None and x.is_contiguous(memory_format=order)


def like(g: Tensor, x: Tensor) -> Tensor:
    """``g`` in the memory order of the dense ``x``."""
    return torch.empty_like(x, dtype=g.dtype).copy_(g) if g.stride() != x.stride() else g


def stacked(groups: list) -> list[Tensor]:
    """The tensors of every group as one each; those of a single group as they are."""
    return list(groups[0] if len(groups) == 1 else map(torch.stack, zip(*groups, strict=True)))


def native_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of every channel, at least float32."""
    # Without running statistics in float32 the kernel would return half precision.
    mean, var = x.new_zeros((2, x.shape[1]), dtype=torch.float32) if x.dtype in HALF else (None, None)
    return torch.batch_norm_update_stats(x, mean, var, 0.0)


def statistics_of_rows(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance, (G, C) or (C), of a tensor in rows: chunk by chunk, then merged."""
    C = x.shape[1]
    M = x.numel() // (groups * C)
    chunks = -(-M // CHUNK)
    sizes = [(M + i) // chunks for i in range(chunks)]
    parts = x.as_strided((groups * M, C), (C, 1)).split(sizes * groups)
    means, variances = stacked([native_statistics(part) for part in parts])
    if chunks == 1:
        return means, variances
    means, variances = (t.view(groups, chunks, C).squeeze(0) for t in (means, variances))
    share = means.new_tensor(sizes).div_(M).unsqueeze(1)
    mean = (share * means).sum(-2, keepdim=True)  # merged by the method of Chan, Golub and LeVeque
    return mean.squeeze(-2), (share * (variances + (means - mean).square())).sum(-2)


def statistics_of_planes(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """The same of a contiguous tensor: one native call takes the planes of all examples as channels."""
    planes = len(x) * x.shape[1]
    lines = x.shape[2] if x.dim() > 3 and x.numel() > planes * PLANE else 1  # of a large plane, each by itself
    means, variances = native_statistics(x.view(1, planes * lines, -1))
    means, variances = (t.view(groups, -1, x.shape[1], lines) for t in (means, variances))
    mean = means.mean((1, 3), keepdim=True)
    var = (variances + (means - mean).square()).mean((1, 3))
    return mean.view(groups, -1).squeeze(0), var.squeeze(0)


class Native:
    """The native kernels, for one group, or in half precision on a CPU for several, one after the other.

    Statistics are (C), those of several groups (G, C).
    """

    def __init__(self, x: Tensor, groups: int) -> None:
        self.x, self.groups = x, groups

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and biased variance of every channel."""
        x, groups = self.x, self.groups
        if not (x.is_cpu and x.dtype in HALF):
            return native_statistics(x)
        if is_in_rows(x):
            return statistics_of_rows(x, groups)
        plane = x.numel() // (len(x) * x.shape[1])
        if plane >= PLANE_FROM:
            return statistics_of_planes(x, groups)
        mean, var = Matrices(x.float(), groups, plane).statistics()
        return mean.squeeze(0), var.squeeze(0)

    def affine(self, mean, var, inv, weight, bias, eps: float) -> Tensor:
        """(x - mean) / sqrt(var + eps) * weight + bias, where inv is 1 / sqrt(var + eps)."""
        if self.groups == 1:
            return torch.native_batch_norm(self.x, weight, bias, mean, var, False, 0.0, eps)[0]
        y = torch.empty_like(self.x)
        unused = {"save_mean": mean.new_empty(0), "save_invstd": mean.new_empty(0)}
        parts = zip(self.x.chunk(self.groups), weight, bias, mean, var, y.chunk(self.groups), strict=True)
        for *inputs, out in parts:
            torch.ops.aten.native_batch_norm.out(*inputs, False, 0.0, eps, out=out, **unused)
        return y

    def gradients(self, g: Tensor, mean, inv, weight, eps: float):
        """dL/dx, dL/d(weight) and dL/d(bias) of :meth:`affine`, where mean and var are those of x."""
        if self.groups == 1:
            return native_backward(g, self.x, weight, None, None, mean, inv, True, eps, ALL)
        parts = zip(g.chunk(self.groups), self.x.chunk(self.groups), weight, mean, inv, strict=True)
        results = [native_backward(gk, xk, w, None, None, m, i, True, eps, ALL) for gk, xk, w, m, i in parts]
        return torch.cat([gx for gx, *_ in results]), *stacked([sums for _, *sums in results])


class Matrices:
    """All groups together, as a matrix each: a column per channel if channels-last, else per channel and position."""

    def __init__(self, x: Tensor, groups: int, positions: int) -> None:
        self.x, self.positions = x, positions
        self.values = x.numel() // (groups * x.shape[1])  # of a channel in a group
        self.GMK = groups, self.values // positions, positions * x.shape[1]
        # y or gx, and until then memory for the sums. No view: autograd refuses an in-place ReLU on a Function's view.
        self.out = torch.empty_like(x)

    def matrix(self, x: Tensor) -> Tensor:
        """A view of shape (G, M, K)."""
        _, M, K = self.GMK
        return x.as_strided(self.GMK, (M * K, K, 1))

    def columns(self, t_GC: Tensor) -> Tensor:
        """Broadcast to every row of the matrices."""
        return (t_GC if self.positions == 1 else t_GC.repeat_interleave(self.positions, 1)).unsqueeze(-2)

    def sums(self, t_GMK: Tensor) -> Tensor:
        """The sums of every channel, (G, C)."""
        t_GK = t_GMK.sum(1)
        return t_GK if self.positions == 1 else t_GK.view(len(t_GK), -1, self.positions).sum(2)

    def statistics(self) -> tuple[Tensor, Tensor]:
        x_GMK = self.matrix(self.x)
        mean = self.sums(x_GMK).div_(self.values)
        squares = torch.sub(x_GMK, self.columns(mean), out=self.matrix(self.out)).square_()
        return mean, self.sums(squares).div_(self.values)

    def affine(self, mean, var, inv, weight, bias, eps: float) -> Tensor:
        scale = weight * inv
        shift = torch.addcmul(bias, mean, scale, value=-1)
        torch.addcmul(self.columns(shift), self.matrix(self.x), self.columns(scale), out=self.matrix(self.out))
        return self.out

    def gradient_sums(self, g: Tensor, mean, inv, eps: float) -> list[Tensor]:
        """dL/d(weight) and dL/d(bias)."""
        g_GMK = self.matrix(g)
        products = torch.sub(self.matrix(self.x), self.columns(mean), out=self.matrix(self.out)).mul_(g_GMK)
        return [self.sums(products).mul_(inv), self.sums(g_GMK)]

    def gradients(self, g: Tensor, mean, inv, weight, eps: float):
        """gx = scale * (g - mean(g) - normal * mean(g * normal)), where scale is weight / sigma."""
        g_weight, g_bias = self.gradient_sums(g, mean, inv, eps)
        scale = weight * inv
        share = scale / -self.values
        slope = share * inv * g_weight
        shift = torch.addcmul(share * g_bias, slope, mean, value=-1)
        gx_GMK = torch.addcmul(self.columns(shift), self.matrix(self.x), self.columns(slope), out=self.matrix(self.out))
        gx_GMK.addcmul_(self.matrix(g), self.columns(scale))
        return self.out, g_weight, g_bias


class Rows(Matrices):
    """Large groups of a channels-last tensor on a CPU, or a single one: the native kernels compute the sums."""

    def statistics(self) -> tuple[Tensor, Tensor]:
        return statistics_of_rows(self.x, self.GMK[0])

    def gradient_sums(self, g: Tensor, mean, inv, eps: float) -> list[Tensor]:
        parts = zip(self.matrix(g), self.matrix(self.x), mean, inv, strict=True)
        return stacked([native_backward(gk, xk, None, None, None, m, i, True, eps, SUMS)[1:] for gk, xk, m, i in parts])


def arranged(x: Tensor, groups: int, backward: bool = False) -> Native | Matrices:
    """x, if necessary converted to a memory order that the kernels know, with the faster kernels for it."""
    rows = is_in_rows(x)
    x = x if rows else x.contiguous()
    if x.dtype in HALF and groups > 1 and not x.is_cpu:
        x = x.float()
    if x.dtype in HALF or (groups == 1 and (backward or not rows or not x.is_cpu)):
        return Native(x, groups)
    kernels = Rows if groups == 1 or (rows and x.is_cpu and x.numel() >= groups * NATIVE_FROM) else Matrices
    return kernels(x, groups, 1 if rows else x.numel() // (x.shape[0] * x.shape[1]))


class BatchRenormFunction(torch.autograd.Function):
    """Returns y; muB and sigmaB go into a list, because an output costs as much as five operations on C values."""

    @staticmethod
    def forward(ctx, x, gamma, beta, mu, sigma, rmax, dmax, eps, groups, moments):
        kernels = arranged(x, groups)
        mu_b, var = kernels.statistics()
        sigma_b = (var + eps).sqrt_()
        r, d = correction(mu_b, sigma_b, mu, sigma, rmax, dmax)
        gamma_, beta_ = in_dtype(r.dtype, gamma, beta)
        weight, bias = (r, d) if gamma is None else (gamma_ * r, gamma_ * d)
        bias = bias if beta is None else bias + beta_
        inv = sigma_b.reciprocal()
        y = kernels.affine(mu_b, var, inv, weight, bias, eps)
        moments += mu_b, sigma_b
        ctx.save_for_backward(x, gamma, beta, weight, mu_b, inv, r, d)
        ctx.eps, ctx.groups = eps, groups
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx, g):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, gamma, beta, weight, mu_b, inv, r, d = ctx.saved_tensors
        needed = ctx.needs_input_grad[:3]
        if derivatives_follow(g):
            return *gradients_of_algorithm1(g, (x, gamma, beta), needed, r, d, ctx.eps), *(None,) * 7
        kernels = arranged(x, ctx.groups, backward=True)
        gx, g_weight, g_bias = kernels.gradients(like(g.to(kernels.x.dtype), kernels.x), mu_b, inv, weight, ctx.eps)
        # sum(g * xhat), where xhat is the kernels' normalised x, times r, plus d
        g_gamma = torch.addcmul(g_weight * r, g_bias, d) if needed[1] else None
        if ctx.groups > 1:
            g_gamma, g_bias = None if g_gamma is None else g_gamma.sum(0), g_bias.sum(0)
        return gx.to(x.dtype), g_gamma, g_bias if needed[2] else None, *(None,) * 7
