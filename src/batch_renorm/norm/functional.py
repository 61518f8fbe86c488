"""Batch Renormalization as a function of tensors (Ioffe 2017, Algorithm 1).

Departures from the paper:

1. Every ``group_size`` consecutive examples are a minibatch of their own, with the mu and sigma of
   all; the moving averages are not updated here.
2. sigma is never taken below ``sqrt(eps)``: no batch has less, and 0 would make r and d undefined.

Departures from ``torch.nn.functional.batch_norm``:

1. The batch statistics are returned; they are float32 whatever the input (float64 for float64).
2. sigma is a standard deviation with eps inside, not a variance.
3. One value per channel is enough: its xhat is d.
4. Differentiable once.
"""

import math
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from batch_renorm.norm import grouped, kernels
from batch_renorm.norm.layout import like, sum_of_rows

COLUMNS_OF_INFERENCE = 200
"""Positions of an image from which the native kernel is as fast as plain operations on planes as a matrix."""
TRITON_DEVICES = ("cuda",) if find_spec("triton") is not None else ()
"""Devices whose tensors go to the kernels of :mod:`fused`, where they take them."""
TRITON_WHEN_COMPILED = False
"""Whether torch.compile keeps them, and does not fuse the plain formula itself."""


def batch_renorm(
    x: Tensor,
    mu: Tensor,
    sigma: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    rmax: float | Tensor = 1.0,
    dmax: float | Tensor = 0.0,
    eps: float = 1e-3,
    group_size: int | None = None,
    relu: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Normalises every group of examples with its own statistics, corrected by r and d.

    .. math::
        \mu_B = \mathrm{mean}(x), \qquad
        \sigma_B = \sqrt{\epsilon + \mathrm{mean}((x - \mu_B)^2)} \\
        r = \mathrm{clip}_{[1/r_{max},\, r_{max}]}(\sigma_B / \sigma), \qquad
        d = \mathrm{clip}_{[-d_{max},\, d_{max}]}((\mu_B - \mu) / \sigma) \\
        y = \gamma \left(\frac{x - \mu_B}{\sigma_B}\, r + d\right) + \beta

    The gradient flows through :math:`\mu_B` and :math:`\sigma_B` and never through r and d, so with
    ``rmax=1, dmax=0``, the default, this is batchnorm.

    Args:
        x: input; any floating dtype, with statistics in float32 (float64 for float64).
        mu, sigma: moving averages of :math:`\mu_B` and :math:`\sigma_B`. Not changed.
        gamma, beta: scale and shift. Default: 1 and 0.
        rmax, dmax: bounds of r and d, floats or 0-d tensors. Tensors are not checked, so that
            nothing waits for the device, and can change without a recompilation.
        eps: added to the variance, inside the root.
        group_size: every so many consecutive examples are one group. Default: the whole batch.
        relu: y is max(y, 0); where the GPU's kernels run, at no cost.

    Shape:
        - x: :math:`(N, C, *)`; mu, sigma, gamma, beta: :math:`(C)`
        - y: as x, in its dtype and memory format
        - :math:`\mu_B`, :math:`\sigma_B`: :math:`(N / \text{group\_size}, C)`, without gradient

    Raises:
        ValueError: empty batch, groups that do not divide it, wrong channel count or bounds.
        TypeError: an input that is not floating point.
    """
    groups = check_input(x, x.shape[1] if x.dim() > 1 else 0, group_size)
    _check_channels(x, mu, sigma, gamma, beta)
    check_limits(rmax, dmax)
    if eps <= 0:
        raise ValueError(f"eps must be positive, got {eps}: it bounds sigma away from 0")
    sigma = sigma.clamp_min(math.sqrt(eps))
    y, mu_b, sigma_b = transform(x, mu, sigma, gamma, beta, rmax, dmax, eps, groups, relu)
    return (y, mu_b, sigma_b) if mu_b.dim() == 2 else (y, mu_b.unsqueeze(0), sigma_b.unsqueeze(0))


def transform(x, mu, sigma, gamma, beta, rmax, dmax, eps: float, groups: int, relu: bool):
    """:func:`batch_renorm` of a checked input and a sigma of at least sqrt(eps).

    The statistics of one group may also have the shape (C).
    """
    compiling = torch.compiler.is_compiling()
    if x.device.type in TRITON_DEVICES and (TRITON_WHEN_COMPILED or not compiling):
        from batch_renorm.norm import fused  # here because importing triton takes time

        if fused.takes(x):
            kept = fused.compiled if compiling else fused.FusedBatchRenorm.apply
            return kept(x, mu, sigma, gamma, beta, rmax, dmax, eps, groups, relu)
    if compiling:
        y, mu_b, sigma_b = _formula(x, mu, sigma, gamma, beta, rmax, dmax, eps, groups)
    else:
        moments: list[Tensor] = []
        y = _BatchRenorm.apply(x, gamma, beta, mu, sigma, rmax, dmax, eps, groups, moments)
        mu_b, sigma_b = moments
    return F.relu(y, inplace=True) if relu else y, mu_b, sigma_b


def normalize(x: Tensor, mu: Tensor, sigma: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None) -> Tensor:
    r"""Inference: :math:`y = \gamma (x - \mu) / \sigma + \beta`, differentiable in x, gamma, beta.

    Shapes, dtypes and errors as in :func:`batch_renorm`.
    """
    check_input(x, x.shape[1] if x.dim() > 1 else 0, None)
    _check_channels(x, mu, sigma, gamma, beta)
    # sigma goes into gamma because sigma ** 2 would underflow where 1 / sigma does not.
    return inference(x, mu, torch.ones_like(sigma), sigma.reciprocal() if gamma is None else gamma / sigma, beta)


def inference(x: Tensor, mu: Tensor, sigma: Tensor, gamma: Tensor | None, beta: Tensor | None) -> Tensor:
    """:func:`normalize` of a checked input and a sigma that is not tiny."""
    dtype = x.dtype
    same = mu.dtype == dtype and (gamma is None or gamma.dtype == dtype) and (beta is None or beta.dtype == dtype)
    if same and x.is_cpu and not torch.is_grad_enabled():
        count, (N, C) = x.numel(), x.shape[:2]
        if count < kernels.COLUMNS_FROM or (count >= COLUMNS_OF_INFERENCE * N * C and x.is_contiguous()):
            return torch.native_batch_norm(x, gamma, beta, mu, sigma.square(), False, 0.0, 0.0)[0]
        lay = None
        if not torch.compiler.is_compiling():
            x, lay, _ = grouped.planned(x, 1)
        if lay is not None and lay.plain:
            slope = sigma.reciprocal() if gamma is None else gamma / sigma
            offset = -mu * slope if beta is None else torch.addcmul(beta, mu, slope, value=-1)
            return kernels.slope_offset(x, slope, offset, lay)
    dtype = kernels.statistics_dtype(x)
    gamma, beta = (t if t is None else t.to(dtype) for t in (gamma, beta))
    return F.batch_norm(x, mu.to(dtype), sigma.to(dtype).square(), gamma, beta, False, 0.0, 0.0)


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
    r = (sigma_b / sigma).clamp_(rmin, rmax)
    d = (mu_b - mu).div_(sigma).clamp_(-dmax, dmax)
    return r, d


class _BatchRenorm(torch.autograd.Function):
    """y; muB and sigmaB go into a list, since an output costs as much as five operations on C values."""

    @staticmethod
    def forward(ctx, x, gamma, beta, mu, sigma, rmax, dmax, eps, groups, moments):
        x, lay, how = grouped.planned(x, groups)
        mu_b, var, more = how.statistics(x, lay)
        sigma_b = var.add_(eps).sqrt()
        r, d = correction(mu_b, sigma_b, mu, sigma, rmax, dmax)
        weight, bias = _weight_bias(gamma, beta, r, d)
        inv = sigma_b.reciprocal()
        y = how.affine(x, mu_b, var, inv, weight, bias, more, lay)
        moments += mu_b, sigma_b
        ctx.save_for_backward(x, weight, mu_b, inv, r, d)
        ctx.gradients, ctx.lay = how.gradients, lay
        return y

    @staticmethod
    def backward(ctx, g):  # pyright: ignore[reportIncompatibleMethodOverride]
        # The wrapper costs as much as five operations, too, and matters only where a graph is made.
        return (_differentiable_once if torch.is_grad_enabled() else _gradients)(ctx, g)


def _gradients(ctx, g: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, mu_b, inv, r, d = ctx.saved_tensors
    need_x, need_gamma, need_beta, *_ = ctx.needs_input_grad
    gx, g_weight, g_bias = ctx.gradients(like(g, x), x, mu_b, inv, weight, need_x, ctx.lay)
    # sum(g * xhat), and xhat is the kernels' normalised x times r plus d.
    g_gamma = torch.addcmul(g_weight * r, g_bias, d) if need_gamma else None
    g_beta = g_bias if need_beta else None
    if mu_b.dim() == 2:
        g_gamma, g_beta = (t if t is None else sum_of_rows(t) for t in (g_gamma, g_beta))
    return gx, g_gamma, g_beta, None, None, None, None, None, None, None


_differentiable_once = once_differentiable(_gradients)


def _weight_bias(gamma, beta, r: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    if beta is not None and beta.dtype != r.dtype:
        beta = beta.to(r.dtype)
    if gamma is None:
        return r, d if beta is None else d + beta
    if gamma.dtype != r.dtype:
        gamma = gamma.to(r.dtype)
    return gamma * r, gamma * d if beta is None else torch.addcmul(beta, gamma, d)


def _formula(x, mu, sigma, gamma, beta, rmax, dmax, eps, groups):
    """What torch.compile sees: plain operations that it fuses (mean form; var_mean is slow)."""
    x_GMC = x.unflatten(0, (groups, -1)).to(kernels.statistics_dtype(x))
    dims = [1, *range(3, x_GMC.dim())]
    mean = x_GMC.mean(dims, keepdim=True)
    centred = x_GMC - mean
    sigma_b = (centred.square().mean(dims, keepdim=True) + eps).sqrt()
    with torch.no_grad():
        shape = (groups, x.shape[1])
        mu_out, sigma_out = mean.detach().reshape(shape), sigma_b.detach().reshape(shape)
        rmax, dmax = (t if isinstance(t, Tensor) else mu_out.new_full((), t) for t in (rmax, dmax))
        r, d = _opaque_correction(mu_out, sigma_out, mu, sigma, rmax, dmax)
    weight, bias = _weight_bias(gamma, beta, r, d)
    y = centred * (weight.view(sigma_b.shape) / sigma_b) + bias.view(sigma_b.shape)
    return y.flatten(0, 1).to(x.dtype), mu_out, sigma_out


@torch.library.custom_op("batch_renorm::correction", mutates_args=())
def _opaque_correction(
    mu_b: Tensor, sigma_b: Tensor, mu: Tensor, sigma: Tensor, rmax: Tensor, dmax: Tensor
) -> tuple[Tensor, Tensor]:
    """An operation that the compiler keeps: it would recompute r and d in backward, from the mu and
    sigma that the layer has moved since (pytorch/pytorch#197039), and the gradients would be wrong.
    """
    return correction(mu_b, sigma_b, mu, sigma, rmax, dmax)


@_opaque_correction.register_fake
def _(mu_b, sigma_b, mu, sigma, rmax, dmax):
    return torch.empty_like(mu_b), torch.empty_like(sigma_b)


def check_limits(rmax: float | Tensor, dmax: float | Tensor) -> None:
    if not isinstance(rmax, Tensor) and not rmax >= 1:
        raise ValueError(f"rmax must be at least 1 (1 is batchnorm), got {rmax}")
    if not isinstance(dmax, Tensor) and not dmax >= 0:
        raise ValueError(f"dmax must be at least 0 (0 is batchnorm), got {dmax}")


def check_input(x: Tensor, channels: int, group_size: int | None) -> int:
    """Number of groups of a good input."""
    shape = x.shape
    if group_size is None and len(shape) > 1 and shape[1] == channels and x.is_floating_point() and x.numel():
        return 1
    if not x.is_floating_point():
        raise TypeError(f"batch renorm needs a floating point input, got {x.dtype}")
    if len(shape) < 2:
        raise ValueError(f"batch renorm needs an input (N, C, ...), got shape {shape}")
    if shape[1] != channels:
        raise ValueError(f"input of shape {shape} has {shape[1]} channels, the layer has {channels}")
    if x.numel() == 0:
        # The native backward kernel would divide by zero and end the process.
        raise ValueError(f"batch renorm got an empty batch of shape {shape}: skip such a batch")
    if group_size is None:
        return 1
    if group_size < 1:
        raise ValueError(f"group_size must be at least 1, got {group_size}")
    if shape[0] % group_size:
        raise ValueError(
            f"a batch of {shape[0]} examples does not divide into groups of {group_size}: use a "
            f"multiple of {group_size}, or drop the last batch"
        )
    return shape[0] // group_size


def _check_channels(x: Tensor, mu, sigma, gamma, beta) -> None:
    for name, t in (("mu", mu), ("sigma", sigma), ("gamma", gamma), ("beta", beta)):
        if t is not None and t.shape != x.shape[1:2]:
            raise ValueError(
                f"input of shape {tuple(x.shape)} has {x.shape[1]} channels, but {name} has shape {tuple(t.shape)}"
            )
