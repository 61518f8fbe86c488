"""How the moving averages move, for a layer's own update and for the update once a step.

The stored value is a variance without eps, as in nn.BatchNorm; the averaged value is sigma, or the variance.
"""

import torch
from torch import Tensor


def spread(sigma_b: Tensor, eps: float | Tensor, variance: bool) -> Tensor:
    """The value of a batch that is averaged: sigmaB, or its variance."""
    return sigma_b.square() - eps if variance else sigma_b


def moved_var(var: Tensor, target: Tensor, alpha, eps, variance: bool | Tensor) -> Tensor:
    """running_var after a step of rate `alpha` towards a :func:`spread`.

    alpha, eps and variance are numbers, or tensors with an entry per channel.
    """
    if variance is True:
        return var.lerp(target, alpha)
    by_sigma = (var + eps).sqrt_().lerp_(target, alpha).square_().sub_(eps).clamp_min_(0)
    return by_sigma if variance is False else torch.where(variance, var.lerp(target, alpha), by_sigma)


def where_finite(mean: Tensor, var: Tensor, old_mean: Tensor, old_var: Tensor) -> tuple[Tensor, Tensor]:
    """The new averages, but the old ones for channels whose new averages are not finite."""
    finite = torch.isfinite(mean + var)
    return torch.where(finite, mean, old_mean), torch.where(finite, var, old_var)
