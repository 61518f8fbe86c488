"""Algorithm 1 of the paper in plain operations, which compilers and derivatives of any order need.

Departures from the paper: every ``group_size`` consecutive examples are a minibatch of their own, and sigma is at
least ``sqrt(eps)``, because r and d of a sigma of 0 are undefined. A channel may have a single value.
"""

import warnings

import torch
from torch import Tensor
from torch.autograd import forward_ad


def algorithm1(x, gamma, beta, eps: float, groups: int, constants) -> tuple[Tensor, Tensor, Tensor]:
    """The paper's Algorithm 1, line by line, for every group of examples: y with a gradient, muB and sigmaB without.

    ``constants`` gives r and d, of muB and sigmaB; all have the shape (G, 1, C, 1, ...).
    """
    x_GMC = x.unflatten(0, (groups, -1)).to(torch.promote_types(x.dtype, torch.float32))
    values = [1, *range(3, x_GMC.dim())]  # the axes of the values of a channel
    mu_b = x_GMC.mean(values, keepdim=True)
    centred = x_GMC - mu_b
    sigma_b = (eps + centred.square().mean(values, keepdim=True)).sqrt()
    r, d = constants(mu_b.detach(), sigma_b.detach())
    y = centred / sigma_b * r + d
    gamma, beta = (t if t is None else t.view(mu_b.shape[2:]) for t in (gamma, beta))
    y = y if gamma is None else gamma * y
    y = y if beta is None else y + beta
    return y.flatten(0, 1).to(x.dtype), *(t.detach().reshape(groups, -1) for t in (mu_b, sigma_b))


def gradients_of_algorithm1(g: Tensor, inputs, needed, r: Tensor, d: Tensor, eps: float) -> list[Tensor | None]:
    """dL/d(x, gamma, beta) where they are needed, themselves differentiable; r and d, (C) or (G, C), are constants."""
    x, gamma, beta = inputs
    groups = len(r) if r.dim() == 2 else 1
    with torch.enable_grad():
        y, *_ = algorithm1(x, gamma, beta, eps, groups, lambda mu_b, _: (r.view_as(mu_b), d.view_as(mu_b)))
    wanted = [t for t, need in zip(inputs, needed, strict=True) if need]
    found = iter(torch.autograd.grad(y, wanted, g, create_graph=torch.is_grad_enabled()))
    return [next(found) if need else None for need in needed]


def correction(mu_b, sigma_b, mu, sigma, rmax, dmax, moves: bool = False) -> tuple[Tensor, Tensor]:
    """The paper's r and d, in the dtype of the batch statistics; see :func:`forbid_recompute`."""
    forbid_recompute(moves)
    tensor = isinstance(rmax, Tensor)  # whose value is not looked at, because that would wait for the device
    if not tensor and not isinstance(dmax, Tensor) and rmax == 1 and dmax == 0:
        return torch.ones_like(sigma_b), torch.zeros_like(mu_b)
    rmin = rmax.reciprocal() if tensor else 1 / rmax
    mu, sigma = in_dtype(mu_b.dtype, mu, sigma)
    return (sigma_b / sigma).clamp_(rmin, rmax), (mu_b - mu).div_(sigma).clamp_(-dmax, dmax)


def spread(sigma_b: Tensor, averages: str, eps: float) -> Tensor:
    """The value of a batch that is averaged: sigmaB, or its variance."""
    return sigma_b.square() - eps if averages == "variance" else sigma_b


def moved(mean, var, mu_b, target, alpha, eps, variance: bool | Tensor) -> tuple[Tensor, Tensor]:
    """running_mean and running_var after a step of rate alpha. Channels that would not be finite stay."""
    new_mean, new_var = mean.lerp(mu_b, alpha), var.lerp(target, alpha)
    if variance is not True:
        of_sigma = (var + eps).sqrt_().lerp_(target, alpha).square_().sub_(eps).clamp_min_(0)
        new_var = torch.where(variance, new_var, of_sigma) if variance is not False else of_sigma
    kept = torch.isfinite(new_mean + new_var)
    return torch.where(kept, new_mean, mean), torch.where(kept, new_var, var)


def warn_not_finite(layer: str, moments: Tensor) -> None:
    """Warn if the mean or spread over the groups is not finite in some channels."""
    if bad := int((~torch.isfinite(moments)).sum()):
        text = f"{layer}({len(moments)}): not finite in {bad} of {len(moments)} channels, which keep their mu and sigma"
        warnings.warn(text, RuntimeWarning, stacklevel=2)


def can_read_values(x: Tensor) -> bool:
    """Whether reading a value of a tensor neither waits for a device nor breaks a graph."""
    return x.is_cpu and type(x) is Tensor and not torch.compiler.is_compiling() and not derivatives_follow()


def derivatives_follow(g: Tensor | None = None) -> bool:
    """Whether torch.func, forward mode, a differentiated or a batched backward is active, which no kernel supports."""
    again = g is not None and (torch.is_grad_enabled() or torch._C._functorch.is_legacy_batchedtensor(g))
    return again or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def forbid_recompute(moves: bool) -> None:
    """Raise if checkpointing repeats a forward that has already moved mu and sigma."""
    if moves and torch._C._current_graph_task_id() != -1:
        text = "BatchRenorm ran again in backward (activation checkpointing), after mu and sigma had moved: "
        raise RuntimeError(text + "defer their update with StepStatistics(model), or exclude the layer")


def in_dtype(dtype: torch.dtype, *tensors: Tensor | None) -> list:
    """The tensors in a dtype. A conversion to their own would take a microsecond, and be part of an exported graph."""
    return [t if t is None or t.dtype == dtype else t.to(dtype) for t in tensors]


def compilable_correction(mu_b, sigma_b, mu, sigma, rmax, dmax, moves: bool) -> tuple[Tensor, Tensor]:
    """:func:`correction` of muB and sigmaB of shape (G, 1, C, 1, ...)."""
    mu, sigma = (t.view(mu_b.shape[2:]) for t in (mu, sigma))
    if not torch.compiler.is_compiling():
        return correction(mu_b, sigma_b, mu, sigma, rmax, dmax)
    rmax, dmax = (t if isinstance(t, Tensor) else mu_b.new_full((), t) for t in (rmax, dmax))
    return _opaque_correction(mu_b, sigma_b, mu, sigma, rmax, dmax, moves)


# The compiler would recompute plain r and d in backward, from the mu and sigma that the layer has moved since
# (pytorch/pytorch#197039): wrong gradients. What it does not know it recomputes only for checkpointing.
_opaque_correction = torch.library.custom_op(
    "batch_renorm::correction",
    correction,
    mutates_args=(),
    schema="(Tensor m, Tensor s, Tensor mu, Tensor sigma, Tensor rmax, Tensor dmax, bool moves) -> (Tensor, Tensor)",
)
_opaque_correction.register_fake(lambda mu_b, sigma_b, *_: (torch.empty_like(mu_b), torch.empty_like(sigma_b)))
