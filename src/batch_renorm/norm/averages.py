"""How mu and sigma move: shared by the layer's own update and the once-a-step one."""

import torch
from torch import Tensor


def moved(mu, sigma, mean, spread, alpha, eps, variance) -> tuple[Tensor, Tensor]:
    """mu and sigma after a step towards the mean muB and the mean spread of its groups.

    alpha, eps and variance are numbers, or tensors with an entry per channel.
    """
    mean, spread = mean.to(mu.dtype), spread.to(mu.dtype)
    new_mu = mu.lerp(mean, alpha)
    if variance is False:
        return new_mu, sigma.lerp(spread, alpha)
    by_variance = (eps + (sigma.square() - eps).lerp(spread, alpha)).clamp_min(0).sqrt()
    if variance is True:
        return new_mu, by_variance
    return new_mu, torch.where(variance, by_variance, sigma.lerp(spread, alpha))


def where_finite(new_mu, new_sigma, mu, sigma) -> tuple[Tensor, Tensor]:
    """The new statistics, but the old of a channel where one of the new is not finite."""
    finite = torch.isfinite(new_mu + new_sigma)
    return torch.where(finite, new_mu, mu), torch.where(finite, new_sigma, sigma)
