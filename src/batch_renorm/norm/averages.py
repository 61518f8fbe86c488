"""How the moving averages move: shared by a layer's own update, the once-a-step one and the inference model.

They are stored as nn.BatchNorm does, a variance without eps; what is averaged is sigma, or the variance.
"""

import torch
from torch import Tensor


def spread(sigma_b: Tensor, eps: float | Tensor, variance: bool) -> Tensor:
    """What is averaged of a batch: sigmaB, or its variance."""
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
    """The new averages, but the old of a channel where one of the new is not finite."""
    finite = torch.isfinite(mean + var)
    return torch.where(finite, mean, old_mean), torch.where(finite, var, old_var)
