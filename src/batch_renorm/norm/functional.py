"""Batch Renormalization as a function of tensors (Ioffe 2017, Algorithm 1).

Departures from the paper:

1. Every ``group_size`` consecutive examples are normalised as a separate minibatch, with the same mu
   and sigma; the moving averages are not updated here.
2. sigma is clamped to at least ``sqrt(eps)``: no batch has less, and 0 would make r and d undefined.

Departures from ``torch.nn.functional.batch_norm``:

1. The batch statistics are returned, in float32 for every input dtype but float64 (float64).
2. sigma is a standard deviation with eps inside, not a variance.
3. One value per channel is allowed: its xhat is d.
"""

import math
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from batch_renorm.norm.kernels import BatchRenormFunction, correction, statistics_dtype

TRITON_DEVICES = ("cuda",) if find_spec("triton") is not None else ()
"""Devices whose tensors go to the kernels of :mod:`fused`, if these take them."""
TRITON_WHEN_COMPILED = False
"""Whether torch.compile keeps these kernels instead of fusing the plain formula."""


def algorithm1(x, mu, sigma, gamma, beta, rmax, dmax, eps: float, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """The paper's Algorithm 1, line by line, for every group of examples: y with a gradient, muB and sigmaB without."""
    x_GMC = x.unflatten(0, (groups, -1)).to(statistics_dtype(x))
    values = [1, *range(3, x_GMC.dim())]  # the axes of the values of a channel
    mu_b = x_GMC.mean(values, keepdim=True)
    centred = x_GMC - mu_b
    sigma_b = (eps + centred.square().mean(values, keepdim=True)).sqrt()
    r, d = _constants(mu_b, sigma_b, mu, sigma, rmax, dmax)
    xhat = centred / sigma_b * r + d
    y = xhat if gamma is None else gamma.view(r.shape[2:]) * xhat
    y = y if beta is None else y + beta.view(r.shape[2:])
    return y.flatten(0, 1).to(x.dtype), *(t.detach().reshape(groups, -1) for t in (mu_b, sigma_b))


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

    The gradient flows through :math:`\mu_B` and :math:`\sigma_B` and never through r and d, so the
    default ``rmax=1, dmax=0`` is batchnorm. Derivatives of any order, torch.func and forward mode
    use plain operations.

    Args:
        x: input of any floating dtype; the statistics are float32 (float64 for float64).
        mu, sigma: moving averages of :math:`\mu_B` and :math:`\sigma_B`. Not changed.
        gamma, beta: scale and shift. Default: 1 and 0.
        rmax, dmax: bounds of r and d, floats or 0-d tensors. Tensors are not checked, because that
            would wait for the device; they can change without a recompilation.
        eps: added to the variance, inside the root.
        group_size: number of consecutive examples in a group. Default: the whole batch.
        relu: return max(y, 0); free of cost in the GPU's kernels.

    Shape:
        - x: :math:`(N, C, *)`; mu, sigma, gamma, beta: :math:`(C)`
        - y: as x, in its dtype and memory format
        - :math:`\mu_B`, :math:`\sigma_B`: :math:`(N / \text{group\_size}, C)`, without gradient; :math:`(0, C)`
          for an empty batch

    Raises:
        ValueError: a batch that does not divide into groups, wrong channel count or bounds.
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
    """:func:`batch_renorm` for a checked input and a sigma of at least sqrt(eps), by the fastest suitable way.

    The statistics of a single group may have the shape (C).
    """
    if not x.numel():
        y = F.batch_norm(x, None, None, gamma, beta, True, 0.0, eps)
        return y, *2 * [mu.new_empty((0, x.shape[1]), dtype=statistics_dtype(x))]
    compiling = torch.compiler.is_compiling()
    derived = not compiling and derivatives_wanted()
    if x.device.type in TRITON_DEVICES and (TRITON_WHEN_COMPILED or not compiling) and not derived:
        from batch_renorm.norm import fused  # here because importing triton takes time

        if fused.takes(x):
            kept = fused.compiled if compiling else fused.FusedBatchRenorm.apply
            return kept(x, mu, sigma, gamma, beta, rmax, dmax, eps, groups, relu)
    if compiling or derived:
        y, mu_b, sigma_b = algorithm1(x, mu, sigma, gamma, beta, rmax, dmax, eps, groups)
    else:
        moments: list[Tensor] = []
        y = BatchRenormFunction.apply(x, gamma, beta, mu, sigma, rmax, dmax, eps, groups, moments)
        mu_b, sigma_b = moments
    return F.relu(y, inplace=not derived) if relu else y, mu_b, sigma_b


def derivatives_wanted() -> bool:
    """Whether torch.func or forward mode is active, for which the kernels have no rule."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def normalize(x: Tensor, mu: Tensor, sigma: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None) -> Tensor:
    r"""Inference: :math:`y = \gamma (x - \mu) / \sigma + \beta`, differentiable in every argument.

    Shapes, dtypes and errors as in :func:`batch_renorm`.
    """
    check_input(x, x.shape[1] if x.dim() > 1 else 0, None)
    _check_channels(x, mu, sigma, gamma, beta)
    shape, dtype = (-1, *(1,) * (x.dim() - 2)), statistics_dtype(x)
    slope = sigma.reciprocal() if gamma is None else gamma / sigma
    y = (x - mu.to(dtype).view(shape)) * slope.to(dtype).view(shape)
    return (y if beta is None else y + beta.to(dtype).view(shape)).to(x.dtype)


def inference(x: Tensor, mean: Tensor, var: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float) -> Tensor:
    """Same as nn.BatchNorm in evaluation, but for parameters in any dtype."""
    dtype = statistics_dtype(x)
    if mean.dtype != dtype:  # checked first: a conversion to the same dtype would add an operation to an exported graph
        mean, var = mean.to(dtype), var.to(dtype)
    gamma, beta = (t if t is None or t.dtype == dtype else t.to(dtype) for t in (gamma, beta))
    return F.batch_norm(x, mean, var, gamma, beta, False, 0.0, eps)


def _constants(mu_b: Tensor, sigma_b: Tensor, mu, sigma, rmax, dmax) -> tuple[Tensor, Tensor]:
    """r and d, in the shape of the batch statistics and without a gradient."""
    mu_GC, sigma_GC = (t.detach().reshape(len(t), -1) for t in (mu_b, sigma_b))
    if torch.compiler.is_compiling():
        rmax, dmax = (t if isinstance(t, Tensor) else mu_GC.new_full((), t) for t in (rmax, dmax))
        r, d = _opaque_correction(mu_GC, sigma_GC, mu, sigma, rmax, dmax)
    else:
        r, d = correction(mu_GC, sigma_GC, mu, sigma, rmax, dmax)
    return r.view(mu_b.shape), d.view(mu_b.shape)


@torch.library.custom_op("batch_renorm::correction", mutates_args=())
def _opaque_correction(
    mu_b: Tensor, sigma_b: Tensor, mu: Tensor, sigma: Tensor, rmax: Tensor, dmax: Tensor
) -> tuple[Tensor, Tensor]:
    """An operation that the compiler does not recompute. In backward it would recompute r and d from the
    mu and sigma that the layer has moved since (pytorch/pytorch#197039): wrong gradients.
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
    """The number of groups, for a valid input."""
    shape = x.shape
    if group_size is None and len(shape) > 1 and shape[1] == channels and x.is_floating_point():
        return 1
    if not x.is_floating_point():
        raise TypeError(f"batch renorm needs a floating point input, got {x.dtype}")
    if len(shape) < 2:
        raise ValueError(f"batch renorm needs an input (N, C, ...), got shape {tuple(shape)}")
    if shape[1] != channels:
        raise ValueError(f"input of shape {tuple(shape)} has {shape[1]} channels, the layer has {channels}")
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
