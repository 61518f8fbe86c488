"""Batch Renormalization as a function of tensors (Ioffe 2017), by the fastest of its implementations."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from batch_renorm.norm.algorithm1 import algorithm1, compilable_correction, derivatives_follow
from batch_renorm.norm.kernels import BatchRenormFunction


def batch_renorm(
    x: Tensor, mu: Tensor, sigma: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None,
    rmax: float | Tensor = 1.0, dmax: float | Tensor = 0.0, eps: float = 1e-3, group_size: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    r"""Normalises every group of examples with its own statistics, corrected by r and d.

    .. math::
        \mu_B = \mathrm{mean}(x), \qquad
        \sigma_B = \sqrt{\epsilon + \mathrm{mean}((x - \mu_B)^2)} \\
        r = \mathrm{clip}_{[1/r_{max},\, r_{max}]}(\sigma_B / \sigma), \qquad
        d = \mathrm{clip}_{[-d_{max},\, d_{max}]}((\mu_B - \mu) / \sigma) \\
        y = \gamma \left(\frac{x - \mu_B}{\sigma_B}\, r + d\right) + \beta

    The gradient flows through :math:`\mu_B` and :math:`\sigma_B` and never through r and d, so the default
    ``rmax=1, dmax=0`` is batchnorm. Derivatives of any order, torch.func and forward mode use plain operations.

    Args:
        x: input :math:`(N, C, *)` of any floating dtype.
        mu, sigma: moving averages :math:`(C)` of :math:`\mu_B` and :math:`\sigma_B`. Not changed.
        gamma, beta: scale and shift :math:`(C)`. Default: 1 and 0.
        rmax, dmax: bounds of r and d, floats or 0-d tensors. Tensors can change without a recompilation. They
            are not checked, because that would wait for the device.
        eps: added to the variance, inside the root.
        group_size: number of consecutive examples in a group. Default: the whole batch.

    Returns:
        y, like x; :math:`\mu_B` and :math:`\sigma_B`, (N / group_size, C) float32 (float64 for float64), no gradient.

    Raises ValueError for a batch that does not divide into groups, wrong channels or bounds; TypeError for integers.
    """
    check_options(rmax, dmax, eps, group_size)
    groups = check_input(x, len(mu), group_size)
    for name, t in (("sigma", sigma), ("gamma", gamma), ("beta", beta)):
        if t is not None and t.shape != mu.shape:
            raise ValueError(f"the input has {len(mu)} channels, but {name} has shape {tuple(t.shape)}")
    sigma = sigma.clamp_min(math.sqrt(eps))
    y, mu_b, sigma_b = transform(x, mu, sigma, gamma, beta, rmax, dmax, eps, groups)
    return y, mu_b.view(-1, x.shape[1]), sigma_b.view(-1, x.shape[1])


def transform(x, mu, sigma, gamma, beta, rmax, dmax, eps: float, groups: int, moves: bool = False):
    """:func:`batch_renorm` of what is checked, the fastest way; the statistics of one group may have the shape (C)."""
    if not x.numel():
        y = F.batch_norm(x, None, None, gamma, beta, True, 0.0, eps)
        return y, *2 * [mu.new_empty((0, x.shape[1]), dtype=torch.promote_types(x.dtype, torch.float32))]
    if torch.compiler.is_compiling() or x.is_meta or derivatives_follow():  # some kernels do not know the meta device
        state = mu, sigma, rmax, dmax, moves
        return algorithm1(
            x, gamma, beta, eps, groups, lambda mu_b, sigma_b: compilable_correction(mu_b, sigma_b, *state)
        )
    moments: list[Tensor] = []
    y = BatchRenormFunction.apply(x, gamma, beta, mu, sigma, rmax, dmax, eps, groups, moments)
    return y, *moments


def check_options(rmax: float | Tensor, dmax: float | Tensor, eps: float = 1.0, group_size: int | None = None) -> None:
    if not isinstance(rmax, Tensor) and not rmax >= 1:
        raise ValueError(f"rmax must be at least 1 (1 is batchnorm), got {rmax}")
    if not isinstance(dmax, Tensor) and not dmax >= 0:
        raise ValueError(f"dmax must be at least 0 (0 is batchnorm), got {dmax}")
    if not eps > 0:
        raise ValueError(f"eps must be positive, got {eps}: it bounds sigma away from 0")
    if group_size is not None and (group_size < 1 or group_size != int(group_size)):
        raise ValueError(f"group_size must be a whole number from 1, got {group_size}")


def check_input(x: Tensor, channels: int, group_size: int | None) -> int:
    """The number of groups, for a valid input."""
    shape = x.shape
    if not x.is_floating_point():
        raise TypeError(f"batch renorm needs a floating point input, got {x.dtype}")
    if len(shape) < 2:
        raise ValueError(f"batch renorm needs an input (N, C, ...), got shape {tuple(shape)}")
    if shape[1] != channels:
        raise ValueError(f"the input has {shape[1]} channels, but mu has shape ({channels},)")
    if group_size is None:
        return 1
    if group_size < 1 or shape[0] % group_size:
        raise ValueError(f"{shape[0]} examples do not divide into groups of {group_size}: drop a smaller last batch")
    return shape[0] // group_size
