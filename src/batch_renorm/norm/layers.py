"""BatchRenorm1d, 2d and 3d: the layer in the spelling of nn.BatchNorm.

Departures from the paper:

1. ``group_size``: every so many consecutive examples are a minibatch of their own.
2. ``averages="variance"`` averages the variance, as batchnorm's inference does; with limits (1, 0)
   that is the paper's baseline.
3. A channel whose batch is not finite leaves its mu and sigma as they were.

Departures from nn.BatchNorm:

1. ``momentum`` is the paper's alpha. As in torch it is the rate of the update, not of what is kept;
   its default is the paper's 0.01, and eps is the recipe's 0.001.
2. mu and sigma are the only buffers: no counter, a standard deviation instead of a variance (eps
   inside, biased). They stay float32 in a half precision model.
3. The limits are no buffer either: they follow the step, see ``modes.py``.
"""

import math
import warnings
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from batch_renorm.norm.averages import moved, where_finite
from batch_renorm.norm.functional import check_input, check_limits, inference, transform
from batch_renorm.norm.layout import HALF, mean_of_rows


class Deferred(Protocol):
    """What takes a layer's group statistics when the layer does not update at once."""

    def add(self, layer: "BatchRenorm", mu_b: Tensor, sigma_b: Tensor) -> None:
        """Of shape (G, C), or (C) of one group."""

    def to(self, device: torch.device) -> None: ...


class BatchRenorm(nn.Module):
    r"""Batch Renormalization of an input of any dimension; see :class:`BatchRenorm2d`."""

    dims: tuple[int, ...] = ()
    expected = "(N, C, ...)"
    batchnorm: type[nn.Module] = nn.SyncBatchNorm  # what it folds into; takes any dimension too

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    mu: Tensor
    sigma: Tensor
    limits: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-3,
        momentum: float = 0.01,
        affine: bool = True,
        *,
        group_size: int | None = None,
        rmax: float = 3.0,
        dmax: float = 5.0,
        scale: bool = True,
        center: bool = True,
        averages: Literal["sigma", "variance"] = "sigma",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_options(num_features, eps, momentum, group_size, averages)
        check_limits(rmax, dmax)
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        self.group_size = group_size
        self.averages = averages

        def parameter(wanted: bool) -> nn.Parameter | None:
            if not (affine and wanted):
                return None
            return nn.Parameter(torch.empty(num_features, device=device, dtype=dtype))

        self.register_parameter("weight", parameter(scale))
        self.register_parameter("bias", parameter(center))
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        self.register_buffer("mu", torch.empty(num_features, device=device, dtype=wide))
        self.register_buffer("sigma", torch.empty(num_features, device=device, dtype=wide))
        self.limits = limits_tensor(rmax, dmax, self.mu.device)
        self.deferred: Deferred | None = None
        self.batch_statistics: int | None = None  # group size in evaluation, 0 for the whole batch
        self.reset_parameters()

    @property
    def rmax(self) -> float:
        """The bound of r; on an accelerator reading it waits for the device."""
        return self.limits[0].item()

    @property
    def dmax(self) -> float:
        """The bound of d; on an accelerator reading it waits for the device."""
        return self.limits[1].item()

    def reset_running_stats(self) -> None:
        self.mu.zero_()
        self.sigma.fill_(1)

    def reset_parameters(self) -> None:
        self.reset_running_stats()
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return self._train(x, relu=False)
        if self.batch_statistics is not None:
            groups = self._groups(x, self.batch_statistics or None)
            mu, sigma, weight, bias = self.mu, self.sigma, self.weight, self.bias
            return transform(x, mu, sigma, weight, bias, 1.0, 0.0, self.eps, groups, False)[0]
        self._groups(x, None)
        buffers = self._buffers  # nn.Module's attributes take five times as long
        return inference(x, buffers["mu"], buffers["sigma"], self.weight, self.bias)  # type: ignore[arg-type]

    def _groups(self, x: Tensor, group_size: int | None) -> int:
        if self.dims and x.dim() not in self.dims:
            name = type(self).__name__
            raise ValueError(f"{name} needs an input {self.expected}, got shape {tuple(x.shape)}")
        return check_input(x, self.num_features, group_size)

    def _train(self, x: Tensor, relu: bool) -> Tensor:
        groups = self._groups(x, self.group_size)
        recomputing = _inside_backward()
        if recomputing and self.deferred is None:
            raise RuntimeError(
                "BatchRenorm ran again inside backward (activation checkpointing) after mu and "
                "sigma had moved, which gives wrong gradients: defer their update to the end of "
                "the step with StepStatistics(model), or exclude the layer from checkpointing"
            )
        look = self.limits.device.type == "cpu" and not torch.compiler.is_compiling()
        rmax, dmax = self.limits.tolist() if look else self.limits.unbind()  # floats are faster where nothing waits
        mu, sigma = self.mu, self.sigma
        y, mu_b, sigma_b = transform(x, mu, sigma, self.weight, self.bias, rmax, dmax, self.eps, groups, relu)
        if recomputing:
            return y
        if self.deferred is not None:
            self.deferred.add(self, mu_b, sigma_b)
        else:
            self._move(mu, sigma, mu_b, sigma_b, look)
        return y

    def _move(self, mu: Tensor, sigma: Tensor, mu_b: Tensor, sigma_b: Tensor, look: bool) -> None:
        """The update of mu and sigma, in place; `look` says that looking at a value waits for nothing."""
        spread = sigma_b if self.averages == "sigma" else self.spread(sigma_b)
        mean, spread = (mu_b, spread) if mu_b.dim() == 1 else (mean_of_rows(mu_b), mean_of_rows(spread))
        # A mean that is not finite makes the spread so, and that its square, which is the fastest to ask for.
        finite = look and math.isfinite(spread.dot(spread).item())
        if look and not finite:
            warn_not_finite(type(self).__name__, mean + spread)
        if finite and self.averages == "sigma" and mean.dtype == mu.dtype:
            mu.lerp_(mean, self.momentum)  # what `moved` says, in fewer operations
            sigma.lerp_(spread, self.momentum)
            return
        variance = self.averages == "variance"
        new_mu, new_sigma = moved(mu, sigma, mean, spread, self.momentum, self.eps, variance)
        if not finite:
            new_mu, new_sigma = where_finite(new_mu, new_sigma, mu, sigma)
        mu.copy_(new_mu)
        sigma.copy_(new_sigma)

    def spread(self, sigma_b: Tensor) -> Tensor:
        """What is averaged: sigmaB, or the variance."""
        return sigma_b if self.averages == "sigma" else sigma_b.square() - self.eps

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        with torch.no_grad():
            self.sigma.clamp_min_(math.sqrt(self.eps))  # no batch has less, and 0 would make r and d undefined

    def extra_repr(self) -> str:
        text = f"{self.num_features}, eps={self.eps}, momentum={self.momentum}"
        if not self.affine:
            text += ", affine=False"
        else:
            text += "" if self.weight is not None else ", scale=False"
            text += "" if self.bias is not None else ", center=False"
        if self.group_size is not None:
            text += f", group_size={self.group_size}"
        text += f", rmax={self.rmax:g}, dmax={self.dmax:g}"
        return text + (", averages='variance'" if self.averages == "variance" else "")

    def _apply(self, fn, recurse=True):
        before = {"mu": self.mu, "sigma": self.sigma}
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = getattr(self, name)
            if new.dtype in HALF:
                # In half precision they stall long before they arrive: keep them float32.
                setattr(self, name, old.to(new.device, torch.float32))
        device = self.mu.device
        if device != self.limits.device and device.type != "meta":
            self.limits = self.limits.to(device)
            if self.deferred is not None:
                self.deferred.to(device)
        return self

    def __getstate__(self) -> dict:
        # A copy stands on its own: the sums belong to the model that StepStatistics looks after.
        return {**self.__dict__, "deferred": None}


class BatchRenorm1d(BatchRenorm):
    r"""Batch Renormalization of :math:`(N, C)` or :math:`(N, C, L)`; see :class:`BatchRenorm2d`."""

    dims, expected, batchnorm = (2, 3), "(N, C) or (N, C, L)", nn.BatchNorm1d


class BatchRenorm2d(BatchRenorm):
    r"""Batch Renormalization of a 4-D input, in training

    .. math::
        y = \gamma \left(\frac{x - \mu_B}{\sigma_B}\, r + d\right) + \beta, \qquad
        r = \mathrm{clip}_{[1/r_{max},\, r_{max}]}(\sigma_B / \sigma), \quad
        d = \mathrm{clip}_{[-d_{max},\, d_{max}]}((\mu_B - \mu) / \sigma)

    and in evaluation :math:`y = \gamma (x - \mu) / \sigma + \beta`. Every training forward moves
    :math:`\mu \leftarrow \mu + \alpha (\mu_B - \mu)` and :math:`\sigma` likewise, by the mean over
    the groups of the batch, unless a :class:`StepStatistics` has put that off to the end of the
    step. The paper starts with limits (1, 0), which is batchnorm, and relaxes them: call
    :func:`set_limits` with a :class:`Ramp` once a step.

    .. note::
        A batch with a NaN or infinity leaves mu and sigma of its channels as they were. On CPU a
        RuntimeWarning says so; on an accelerator nothing does, since asking would wait for it.

    .. note::
        Activation checkpointing repeats the forward after mu and sigma have moved. That is an error
        here, unless the update is deferred to the end of the step, where it is exact.

    Args:
        num_features: channels, :math:`C`.
        eps: added to the variance, inside the root. A sigma below its root, which no batch has, is
            raised to it when a state_dict is loaded.
        momentum: the paper's alpha, the rate at which mu and sigma move.
        affine: whether there are gamma and beta, as ``weight`` and ``bias``.
        group_size: consecutive examples that are normalised together. Default: the whole batch.
        rmax, dmax: bounds of r and d until :func:`set_limits` is called.
        scale, center: whether there is gamma; beta. The paper's experiments have ``scale=False``.
        averages: ``"sigma"``, or ``"variance"`` for the batchnorm baseline.
        device, dtype: of the parameters. mu and sigma are float32, or float64 for float64.

    Shape:
        - Input and output: :math:`(N, C, H, W)`, same dtype and memory format.

    Raises:
        ValueError: wrong dimension or channels, an empty batch, a batch that does not divide into
            groups.
        RuntimeError: a training forward inside backward without a deferred update.

    Example::

        >>> norm = BatchRenorm2d(64, group_size=4)
        >>> y = norm(torch.randn(32, 64, 35, 35))
    """

    dims, expected, batchnorm = (4,), "(N, C, H, W)", nn.BatchNorm2d


class BatchRenorm3d(BatchRenorm):
    r"""Batch Renormalization of :math:`(N, C, D, H, W)`; see :class:`BatchRenorm2d`."""

    dims, expected, batchnorm = (5,), "(N, C, D, H, W)", nn.BatchNorm3d


def layers_of(model: nn.Module) -> dict[str, BatchRenorm]:
    """Every BatchRenorm layer of a model by name; a model without one is an error."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, BatchRenorm)}
    if not layers:
        raise ValueError(
            f"{type(model).__name__} has no BatchRenorm layer: build it with one, or convert its "
            "batchnorm with convert_batchnorm(model)"
        )
    return layers


def limits_tensor(rmax: float, dmax: float, device: torch.device) -> Tensor:
    limits = torch.empty(2, dtype=torch.float32, device="cpu" if device.type == "meta" else device)
    fill_limits(limits, rmax, dmax)
    return limits


def fill_limits(limits: Tensor, rmax: float, dmax: float) -> None:
    with torch.inference_mode(limits.is_inference()), torch.no_grad():
        limits[0].fill_(rmax)
        limits[1].fill_(dmax)


def warn_not_finite(layer: str, moments: Tensor) -> None:
    """Warn of the channels, if any, whose mean or spread over the groups is not finite."""
    count = int((~torch.isfinite(moments)).sum())
    if count:
        warnings.warn(
            f"{layer}({len(moments)}): the batch is not finite in {count} of {len(moments)} channels; "
            "their mu and sigma are not updated",
            RuntimeWarning,
            stacklevel=2,
        )


def _inside_backward() -> bool:
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _check_options(num_features, eps, momentum, group_size, averages) -> None:
    if num_features < 1:
        raise ValueError(f"num_features must be at least 1, got {num_features}")
    if not eps > 0:
        raise ValueError(f"eps must be positive, got {eps}: it bounds sigma away from 0")
    if momentum is None or not 0 <= momentum <= 1:
        raise ValueError(f"momentum must be between 0 and 1, got {momentum}: it is the rate of the update, as in torch")
    if group_size is not None and group_size < 1:
        raise ValueError(f"group_size must be at least 1, got {group_size}")
    if averages not in ("sigma", "variance"):
        raise ValueError(f"averages must be 'sigma' or 'variance', got {averages!r}")
