"""Batch Renormalization outside torch.compile: forward and backward in few calls, for one group or many.

With constant r and d, Batch Renormalization is batchnorm with weight ``gamma * r`` and bias
``beta + gamma * d``. The kernels of ``nn.BatchNorm2d`` compute that, with one call per group. For small groups
the calls cost more than the computation, so plain operations take all groups at once, as one matrix per group:
channels-last tensors have a column per channel, others a column per channel and position.

Suffixes name the axes: G groups, M rows of a group's matrix, K its columns, C channels, L columns of a channel.
"""

from typing import NamedTuple

import torch
from torch import Tensor

aten = torch.ops.aten
HALF = (torch.float16, torch.bfloat16)
# On a CPU, native calls per group are faster than plain operations from this number of elements per group on.
NATIVE_FROM = 25_000
# Most values of a channel in one float32 accumulator of the native kernel for channels-last tensors on a CPU. With
# 700,000 values in one accumulator the variance has a relative error of 3e-4; with merged chunks of this size, 4e-6.
CHUNK = 1 << 12


def statistics_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def is_in_rows(x: Tensor) -> bool:
    """Whether channels are innermost: channels_last, or a plain (N, C) matrix."""
    if x.dim() == 4 and not x.is_contiguous():
        return x.is_contiguous(memory_format=torch.channels_last)
    if x.dim() == 5 and not x.is_contiguous():
        return x.is_contiguous(memory_format=torch.channels_last_3d)
    return x.is_contiguous() and x.numel() == x.shape[0] * x.shape[1]


def like(g: Tensor, x: Tensor) -> Tensor:
    """``g`` in the memory order of the dense ``x``."""
    return torch.empty_like(x, dtype=g.dtype).copy_(g) if g.stride() != x.stride() else g


class Plan(NamedTuple):
    """How a batch is computed; its groups are equal numbers of consecutive examples."""

    groups: int
    M: int
    C: int
    L: int
    rows: bool
    """Whether channels are innermost in memory; otherwise planes."""
    together: bool
    """Whether all groups are computed at once as matrices; otherwise by a native call for each."""

    def matrix(self, x: Tensor) -> Tensor:
        """A view of shape (G, M, K)."""
        K = self.C * self.L
        return x.as_strided((self.groups, self.M, K), (self.M * K, K, 1))

    def columns(self, t_GC: Tensor) -> Tensor:
        """Broadcast to every row of the matrices."""
        return (t_GC if self.L == 1 else t_GC.repeat_interleave(self.L, 1)).unsqueeze(1)

    def sums(self, t_GMK: Tensor) -> Tensor:
        """The sums of every channel, (G, C)."""
        t_GK = t_GMK.sum(1)
        return t_GK if self.L == 1 else t_GK.view(self.groups, self.C, self.L).sum(2)


def planned(x: Tensor, groups: int) -> tuple[Tensor, Plan]:
    """The tensor, if necessary converted to float32 and to a memory order that the kernels know, and its plan."""
    rows = is_in_rows(x)
    if not rows:
        x = x.contiguous()
    if x.dtype in HALF and (groups > 1 or x.is_cpu):
        x = x.float()  # only a GPU's kernels take half precision with float32 statistics
    C, count = x.shape[1], x.numel()
    L = 1 if rows else count // (x.shape[0] * C)
    M = count // (groups * C * L)
    together = groups > 1 and (not x.is_cpu or M * C * L < NATIVE_FROM)
    return x, Plan(groups, M, C, L, rows, together)


class BatchRenormFunction(torch.autograd.Function):
    """Returns y; muB and sigmaB go into a list, because an output costs as much as five operations on C values."""

    @staticmethod
    def forward(ctx, x, gamma, beta, mu, sigma, rmax, dmax, eps, groups, moments):
        wide, plan = planned(x, groups)
        statistics, affine, _ = TOGETHER if plan.together else NATIVE
        mu_b, var, centred = statistics(wide, plan)
        sigma_b = (var + eps).sqrt_()
        r, d = correction(mu_b, sigma_b, mu, sigma, rmax, dmax)
        weight, bias = _weight_bias(gamma, beta, r, d)
        inv = sigma_b.reciprocal()
        y = affine(wide, mu_b, var, inv, weight, bias, eps, centred, plan)
        moments += mu_b, sigma_b
        ctx.save_for_backward(x, gamma, weight, mu_b, inv, r, d)
        ctx.eps, ctx.groups = eps, groups
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx, g):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, gamma, weight, mu_b, inv, r, d = ctx.saved_tensors
        needed = ctx.needs_input_grad[:3]
        if derivatives_follow(g):
            found = plain_gradients(g, x, gamma, r, d, ctx.eps, needed)
        else:
            found = _gradients(g, x, weight, mu_b, inv, r, d, ctx.eps, ctx.groups, needed)
        return (*found, *(None,) * 7)


def correction(mu_b, sigma_b, mu, sigma, rmax, dmax) -> tuple[Tensor, Tensor]:
    """The paper's r and d, in the dtype of the batch statistics."""
    if isinstance(rmax, Tensor):
        rmin = rmax.reciprocal()
    elif rmax == 1 and not isinstance(dmax, Tensor) and dmax == 0:
        return torch.ones_like(sigma_b), torch.zeros_like(mu_b)
    else:
        rmin = 1 / rmax
    if mu.dtype != mu_b.dtype:
        mu, sigma = mu.to(mu_b.dtype), sigma.to(mu_b.dtype)
    return (sigma_b / sigma).clamp_(rmin, rmax), (mu_b - mu).div_(sigma).clamp_(-dmax, dmax)


def _weight_bias(gamma, beta, r: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    gamma, beta = (t if t is None or t.dtype == r.dtype else t.to(r.dtype) for t in (gamma, beta))
    if gamma is None:
        return r, d if beta is None else d + beta
    return gamma * r, gamma * d if beta is None else torch.addcmul(beta, gamma, d)


def _gradients(g, x, weight, mu_b, inv, r, d, eps, groups, needed):
    wide, plan = planned(x, groups)
    _, _, gradients = TOGETHER if plan.together else NATIVE
    gx, g_weight, g_bias = gradients(like(g.to(wide.dtype), wide), wide, weight, mu_b, inv, eps, needed[0], plan)
    # sum(g * xhat), where xhat is the kernels' normalised x, times r, plus d.
    g_gamma = torch.addcmul(g_weight * r, g_bias, d) if needed[1] else None
    if groups > 1:
        g_gamma, g_bias = None if g_gamma is None else g_gamma.sum(0), g_bias.sum(0)
    return gx if gx is None else gx.to(x.dtype), g_gamma, g_bias if needed[2] else None


def derivatives_follow(g: Tensor) -> bool:
    """Whether the backward is differentiated again, or runs for many g at once: the kernels cannot do either."""
    batched = torch._C._functorch.is_legacy_batchedtensor(g)  # from torch.autograd.grad(is_grads_batched=True)
    return batched or torch.is_grad_enabled() or torch._C._are_functorch_transforms_active()


def plain_gradients(g, x, gamma, r, d, eps, needed) -> list[Tensor | None]:
    """dL/dx, dL/d(gamma), dL/d(beta) in differentiable plain operations; r and d are constants."""
    groups = len(r) if r.dim() == 2 else 1
    x_GMC, g_GMC = (t.reshape(groups, -1, *x.shape[1:]).to(r.dtype) for t in (x, g))
    values = [1, *range(3, x_GMC.dim())]
    r, d = (t.view(groups, 1, -1, *(1,) * (x.dim() - 2)) for t in (r, d))
    centred = x_GMC - x_GMC.mean(values, keepdim=True)
    inv = (centred.square().mean(values, keepdim=True) + eps).rsqrt()
    normal = centred * inv
    g_weight, g_bias = (t.sum(values, keepdim=True) for t in (g_GMC * normal, g_GMC))
    scale = r * inv if gamma is None else gamma.view(r.shape[2:]) * r * inv
    gx = scale * (g_GMC - (g_bias + normal * g_weight) * (r.numel() / x.numel()))
    found = gx.reshape(x.shape).to(x.dtype), *(t.sum(0).reshape(-1) for t in (r * g_weight + d * g_bias, g_bias))
    return [t if need else None for t, need in zip(found, needed, strict=True)]


# ---- a native call for each group: statistics are (C) for one group, (G, C) for several --------------------------


def _groups(t: Tensor, plan: Plan) -> tuple[Tensor, ...]:
    return t.split(len(t) // plan.groups)


def _native_statistics(x: Tensor, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance of every channel, and x itself."""
    if plan.groups == 1:
        return *_group_statistics(x, plan), x
    means, variances = zip(*[_group_statistics(part, plan) for part in _groups(x, plan)], strict=True)
    return torch.stack(means), torch.stack(variances), x


def _group_statistics(x: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    if x.dtype in HALF:
        # Without float32 running statistics the kernel returns half precision.
        mean = x.new_zeros(plan.C, dtype=torch.float32)
        return torch.batch_norm_update_stats(x, mean, torch.zeros_like(mean), 0.0)
    if not plan.rows or plan.M <= CHUNK or not x.is_cpu:
        return torch.batch_norm_update_stats(x, None, None, 0.0)
    chunks = x.as_strided((plan.M, plan.C), (plan.C, 1)).tensor_split(-(-plan.M // CHUNK))
    found = [torch.batch_norm_update_stats(chunk, None, None, 0.0) for chunk in chunks]
    means, variances = map(torch.stack, zip(*found, strict=True))
    share = means.new_tensor([len(c) / plan.M for c in chunks]).unsqueeze(1)
    mean = (share * means).sum(0)  # merged by the method of Chan, Golub and LeVeque
    return mean, (share * (variances + (means - mean).square())).sum(0)


def _native_affine(x: Tensor, mean, var, inv, weight, bias, eps: float, _, plan: Plan) -> Tensor:
    if plan.groups == 1:
        return torch.native_batch_norm(x, weight, bias, mean, var, False, 0.0, eps)[0]
    # A new tensor, never a view: autograd refuses an in-place ReLU on a view out of a Function.
    y, unused = torch.empty_like(x), mean.new_empty(0)
    for part, m, v, w, b, out in zip(_groups(x, plan), mean, var, weight, bias, _groups(y, plan), strict=True):
        torch.native_batch_norm(part, w, b, m, v, False, 0.0, eps, out=(out, unused, unused))
    return y


def _native_gradients(g: Tensor, x: Tensor, weight, mean, inv, eps: float, need_x: bool, plan: Plan):
    """dL/dx, dL/d(weight) and dL/d(bias) of batchnorm with this weight."""
    mask = [need_x, True, True]
    if plan.groups == 1:
        return aten.native_batch_norm_backward(g, x, weight, None, None, mean, inv, True, eps, mask)
    parts = zip(_groups(g, plan), _groups(x, plan), weight, mean, inv, strict=True)
    gx = torch.empty_like(x) if need_x else None
    outs = () if gx is None else _groups(gx, plan)
    g_weight, g_bias = torch.empty_like(mean), torch.empty_like(mean)
    for k, (gk, xk, w, m, i) in enumerate(parts):
        gxk, g_weight[k], g_bias[k] = aten.native_batch_norm_backward(gk, xk, w, None, None, m, i, True, eps, mask)
        if need_x:
            outs[k].copy_(gxk)
    return gx, g_weight, g_bias


# ---- all groups together, as matrices ----------------------------------------------------------------------------


def _matrix_statistics(x: Tensor, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, biased variance, and the centred matrices."""
    x_GMK, count = plan.matrix(x), plan.M * plan.L
    mean = plan.sums(x_GMK).div_(count)
    centred = x_GMK - plan.columns(mean)
    return mean, plan.sums(centred.square()).div_(count), centred


def _matrix_affine(x: Tensor, mean, var, inv, weight, bias, eps: float, centred: Tensor, plan: Plan) -> Tensor:
    y = torch.empty_like(x)
    torch.addcmul(plan.columns(bias), centred, plan.columns(weight * inv), out=plan.matrix(y))
    return y


def _matrix_gradients(g: Tensor, x: Tensor, weight, mean, inv, eps: float, need_x: bool, plan: Plan):
    """gx = scale * (g - mean(g) - normal * mean(g * normal)), where scale is weight / sigma."""
    g_GMK, centred = plan.matrix(g), plan.matrix(x) - plan.columns(mean)
    g_bias, g_weight = plan.sums(g_GMK), plan.sums(centred * g_GMK).mul_(inv)
    if not need_x:
        return None, g_weight, g_bias
    gx = torch.empty_like(x)
    scale = weight * inv
    share = scale / -(plan.M * plan.L)
    slope = share * inv * g_weight
    gx_GMK = torch.addcmul(plan.columns(share * g_bias), centred, plan.columns(slope), out=plan.matrix(gx))
    gx_GMK.addcmul_(g_GMK, plan.columns(scale))
    return gx, g_weight, g_bias


NATIVE = _native_statistics, _native_affine, _native_gradients
TOGETHER = _matrix_statistics, _matrix_affine, _matrix_gradients
