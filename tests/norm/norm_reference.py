"""The paper's Algorithm 1 and its printed gradients, for one group, in plain operations; a network to try layers in."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from batch_renorm.norm import BatchRenorm2d


class Result(NamedTuple):
    y: Tensor
    mu_b: Tensor
    sigma_b: Tensor
    xhat: Tensor
    r: Tensor
    d: Tensor


def algorithm1(x, mu, sigma, gamma, beta, rmax, dmax, eps) -> Result:
    """x: (m, C), as in the paper: m values per channel."""
    m = len(x)
    mu_b = x.sum(0) / m
    sigma_b = torch.sqrt(eps + ((x - mu_b) ** 2).sum(0) / m)
    r = torch.clip(sigma_b / sigma, 1 / rmax, rmax).detach()
    d = torch.clip((mu_b - mu) / sigma, -dmax, dmax).detach()
    xhat = (x - mu_b) / sigma_b * r + d
    return Result(gamma * xhat + beta, mu_b, sigma_b, xhat, r, d)


def printed_gradients(g, x, gamma, result: Result) -> tuple[Tensor, Tensor, Tensor]:
    """dl/dx, dl/dgamma, dl/dbeta from dl/dy, line by line as printed."""
    m = len(x)
    _, mu_b, sigma_b, xhat, r, _ = result
    g_xhat = g * gamma
    g_sigma_b = (g_xhat * (x - mu_b) * -r / sigma_b**2).sum(0)
    g_mu_b = (g_xhat * -r / sigma_b).sum(0)
    g_x = g_xhat * r / sigma_b + g_sigma_b * (x - mu_b) / (m * sigma_b) + g_mu_b / m
    return g_x, (g * xhat).sum(0), g.sum(0)


def as_matrix(x: Tensor) -> Tensor:
    """(N, C, *) to (values of a channel, C)."""
    return x.movedim(1, -1).reshape(-1, x.shape[1])


def as_input(matrix: Tensor, shape) -> Tensor:
    """Back from :func:`as_matrix`."""
    return matrix.reshape(shape[0], *shape[2:], shape[1]).movedim(-1, 1)


def by_groups(x, g, groups, rmax, dmax, mu, sigma, gamma, beta, eps=1e-3) -> list[Tensor]:
    """y, mu_b, sigma_b and the gradients of x, gamma and beta for dL/dy = g; x and g are (N, C, *)."""
    outs = []
    for xs, gs in zip(x.chunk(groups), g.chunk(groups), strict=True):
        result = algorithm1(as_matrix(xs), mu, sigma, gamma, beta, rmax, dmax, eps)
        gx, *rest = printed_gradients(as_matrix(gs), as_matrix(xs), gamma, result)
        outs.append((as_input(result.y, xs.shape), *result[1:3], as_input(gx, xs.shape), *rest))
    y, mu_b, sigma_b, gx, g_gamma, g_beta = zip(*outs, strict=True)
    return [torch.cat(y), torch.stack(mu_b), torch.stack(sigma_b), torch.cat(gx), sum(g_gamma), sum(g_beta)]


def trained(function, x, g, gamma, beta) -> list[Tensor]:
    """The same of function(x, gamma, beta), which returns y, mu_b and sigma_b, by autograd."""
    leaves = [t.detach().requires_grad_() for t in (x, gamma, beta)]
    y, mu_b, sigma_b = function(*leaves)
    y.backward(g)
    return [y.detach(), mu_b, sigma_b, *(leaf.grad for leaf in leaves)]


def assert_near(found, expected, tolerance) -> None:
    """Each tensor is as expected, up to the tolerance times its largest value, or 1."""
    for a, b in zip(found, expected, strict=True):
        atol = tolerance * max(1.0, b.abs().max().item())
        torch.testing.assert_close(a, b, rtol=0, atol=atol, check_dtype=False)


def state(channels: int, dtype=torch.float64) -> dict[str, Tensor]:
    """Some mu, sigma, gamma, beta; with bounds of 1.5 and 0.5 about half of the r and d clip."""
    generator = torch.Generator().manual_seed(0)
    ranges = {"mu": (-1, 2), "sigma": (0.5, 5), "gamma": (0.5, 2), "beta": (-1, 1)}
    return {
        name: (low + (high - low) * torch.rand(channels, generator=generator, dtype=torch.float64)).to(dtype)
        for name, (low, high) in ranges.items()
    }


def statistics_of(model) -> dict[str, Tensor]:
    """Copies of a model's running statistics and counters, by name."""
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def filled(layer):
    """The layer with some statistics and parameters."""
    values = state(layer.num_features)
    layer.mu, layer.sigma = values["mu"], values["sigma"]
    layer.load_state_dict({"weight": values["gamma"], "bias": values["beta"]}, strict=False)
    return layer


def network(norm=BatchRenorm2d, **options) -> nn.Sequential:
    """Two convolutions, each with a norm that has some statistics; the same at every call."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), norm(4, **options), nn.ReLU(), nn.Conv2d(4, 5, 3), norm(5, **options))
    for layer in (model[1], model[4]):
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2)
    return model
