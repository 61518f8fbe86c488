"""BatchRenorm1d, 2d and 3d: the layer with the arguments and the state of nn.BatchNorm.

Departures from the paper:

1. ``group_size`` consecutive examples are normalised as a separate minibatch.
2. ``averages="variance"`` averages the variance; with limits (1, 0) that is the paper's baseline.
3. A channel whose batch is not finite keeps its mu and sigma.

Departures from nn.BatchNorm:

1. ``momentum`` is the paper's alpha, 0.01 by default; the default eps is the recipe's 0.001.
2. ``running_var`` is biased, and the average is over sigma = sqrt(running_var + eps). The averages stay
   float32 in a half precision model.
3. The limits are not a buffer: they follow the step, see ``modes.py``.
4. Tools that would replace the layer by batchnorm get an error or a warning, see :attr:`BatchRenorm.affine`.
"""

import math
import sys
import warnings
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.modules.batchnorm import _BatchNorm

from batch_renorm.norm.averages import moved_var, spread, where_finite
from batch_renorm.norm.functional import check_input, check_limits, derivatives_wanted, inference, transform
from batch_renorm.norm.kernels import HALF


class Deferred(Protocol):
    """Collects a layer's group statistics if the layer does not update at once."""

    def add(self, layer: "BatchRenorm", mu_b: Tensor, sigma_b: Tensor) -> None:
        """Add mu_b and sigma_b of shape (G, C), or (C) for one group."""

    def to(self, device: torch.device) -> None: ...


class BatchRenorm(_BatchNorm):
    r"""Batch Renormalization of an input of any dimension; see :class:`BatchRenorm2d`."""

    dims: tuple[int, ...] = ()
    expected = "(N, C, ...)"
    folds_into: type[nn.Module] = nn.SyncBatchNorm  # also takes any dimension
    deferred: Deferred | None = None
    batch_statistics: int | None = None  # group size in evaluation, 0 for the whole batch
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    limits: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-3,
        momentum: float | None = 0.01,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        group_size: int | None = None,
        rmax: float = 3.0,
        dmax: float = 5.0,
        scale: bool = True,
        center: bool = True,
        bias: bool = True,
        averages: Literal["sigma", "variance"] = "sigma",
    ) -> None:
        _check_options(num_features, eps, momentum, track_running_stats, group_size, averages)
        check_limits(rmax, dmax)
        super().__init__(num_features, eps=eps, momentum=momentum, affine=affine, device=device, dtype=dtype)
        if not scale:
            self.register_parameter("weight", None)
        if not (center and bias):
            self.register_parameter("bias", None)
        self.group_size = group_size
        self.averages = averages
        self._keep_wide()
        self.limits = limits_tensor(rmax, dmax, self.mu.device)

    @property
    def mu(self) -> Tensor:
        """The paper's mu, (C): ``running_mean`` itself."""
        return self.moving_averages()[0]

    @mu.setter
    def mu(self, value: Tensor) -> None:
        with torch.no_grad():
            self.mu.copy_(value)

    @property
    def sigma(self) -> Tensor:
        """The paper's sigma, (C): sqrt(running_var + eps), a new tensor. To change it, assign it."""
        return (self.moving_averages()[1] + self.eps).sqrt()

    @sigma.setter
    def sigma(self, value: Tensor) -> None:
        with torch.no_grad():
            self.moving_averages()[1].copy_((value.square() - self.eps).clamp_min(0))

    @property
    def rmax(self) -> float:
        """The bound of r; on an accelerator reading it waits for the device."""
        return self.limits[0].item()

    @property
    def dmax(self) -> float:
        """The bound of d; on an accelerator reading it waits for the device."""
        return self.limits[1].item()

    @property
    def affine(self) -> bool:
        """As in nn.BatchNorm. Tools that replace the layer read it, and get an error or a warning."""
        reader, name = sys._getframe(1).f_code.co_name, type(self).__name__
        if reader.startswith("convert_sync"):
            raise TypeError(
                f"{reader} would put batchnorm in the place of {name}: leave sync_batchnorm off (convert other "
                "batchnorm first), and let StepStatistics(model) average mu and sigma over the ranks"
            )
        if reader == "freeze_batch_norm_2d":
            if self.weight is None or self.bias is None:
                raise TypeError(f"timm cannot freeze a {name} without gamma or beta: fold it with to_batchnorm(model)")
            text = f"timm's unfreeze makes batchnorm of a frozen {name}: call convert_batchnorm(model) after it"
            warnings.warn(text, UserWarning, stacklevel=3)
        return self.__dict__["_affine"]

    @affine.setter
    def affine(self, value: bool) -> None:
        self.__dict__["_affine"] = value

    @property
    def batchnorm(self) -> nn.Module:
        """The batchnorm with the same outputs, which tools can fuse; a graph traced in evaluation calls it."""
        module = self.as_batchnorm(type(self).folds_into)
        module.register_forward_pre_hook(_refuse_training)
        return module

    def as_batchnorm(self, kind: type[nn.Module] | None = None) -> nn.Module:
        """The batchnorm with the same outputs in evaluation; it shares the layer's tensors."""
        mean, var = self.moving_averages()
        parameter = next((p for p in (self.weight, self.bias) if p is not None), mean)
        options = {"device": mean.device, "dtype": parameter.dtype}
        make: Any = kind or self.folds_into
        module = make(self.num_features, self.eps, self.momentum, self.__dict__["_affine"], **options)
        if self.weight is not None:
            module.weight = self.weight
        if self.bias is not None:
            module.bias = self.bias
        module.running_mean, module.running_var = mean, var
        module.num_batches_tracked = self.num_batches_tracked
        return module.train(self.training)

    def reset_running_stats(self) -> None:
        if self.deferred is not None:
            raise RuntimeError(
                f"{type(self).__name__} takes its mu and sigma from a StepStatistics: release() that one before they "
                "are estimated anew"
            )
        super().reset_running_stats()

    def reset_parameters(self) -> None:
        self.reset_running_stats()
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, Proxy):  # torch.fx's tracer: one node of its graph, the layer or in evaluation its batchnorm
            place = x.tracer.path_of_module(self) + ("" if self.training else ".batchnorm")
            return x.tracer.create_proxy("call_module", place.strip("."), (x,), {})
        if self.training:
            return self._train(x, relu=False)
        groups = self._groups(x, self.batch_statistics or None)
        mean, var = self.moving_averages()
        if self.batch_statistics is not None:
            return transform(x, mean, self.sigma, self.weight, self.bias, 1.0, 0.0, self.eps, groups, False)[0]
        return inference(x, mean, var, self.weight, self.bias, self.eps)

    def moving_averages(self) -> tuple[Tensor, Tensor]:
        """running_mean and running_var themselves."""
        buffers = self._buffers  # nn.Module's attributes take five times as long
        mean, var = buffers["running_mean"], buffers["running_var"]
        if mean is None or var is None:
            raise ValueError(f"{type(self).__name__} has lost running_mean and running_var, which r and d need")
        return mean, var

    def _groups(self, x: Tensor, group_size: int | None) -> int:
        if self.dims and x.dim() not in self.dims:
            name = type(self).__name__
            raise ValueError(f"{name} needs an input {self.expected}, got shape {tuple(x.shape)}")
        if torch.jit.is_tracing():  # checks of a shape would warn, or become part of the trace
            return 1 if group_size is None else x.shape[0] // group_size
        return check_input(x, self.num_features, group_size)

    def _train(self, x: Tensor, relu: bool) -> Tensor:
        groups = self._groups(x, self.group_size)
        recomputing = _inside_backward()
        if recomputing and self.deferred is None and self.track_running_stats:
            raise RuntimeError(
                "BatchRenorm ran again inside backward (activation checkpointing) after mu and "
                "sigma had moved, which gives wrong gradients: defer their update to the end of "
                "the step with StepStatistics(model), or exclude the layer from checkpointing"
            )
        mean, var = self.moving_averages()
        if mean.dtype in HALF:  # FSDP or another tool has changed the buffers
            self._keep_wide()
            mean, var = self.moving_averages()
        look = self.limits.device.type == "cpu" and not torch.compiler.is_compiling() and not derivatives_wanted()
        rmax, dmax = self.limits.tolist() if look else self.limits.unbind()  # floats are faster if nothing waits
        if self.momentum is None:
            rmax, dmax = 1.0, 0.0  # r and d from unfinished averages would distort the inputs of later layers
        sigma = (var + self.eps).sqrt_()
        y, mu_b, sigma_b = transform(x, mean, sigma, self.weight, self.bias, rmax, dmax, self.eps, groups, relu)
        if recomputing or not self.track_running_stats or not x.numel():
            return y
        if self.deferred is not None:
            self.deferred.add(self, mu_b, sigma_b)
        else:
            self._move(mean, var, mu_b, sigma_b, look)
        return y

    def _move(self, mean: Tensor, var: Tensor, mu_b: Tensor, sigma_b: Tensor, look: bool) -> None:
        """Update the averages in place; `look` says that reading a value does not wait for a device."""
        self.num_batches_tracked.add_(1)
        alpha = self.momentum if self.momentum is not None else self.num_batches_tracked.to(mean.dtype).reciprocal()
        target = self.spread(sigma_b)
        mu_b, target = (t.to(mean.dtype) if t.dim() == 1 else t.mean(0).to(mean.dtype) for t in (mu_b, target))
        # If the mean is not finite, neither are the spread and its square; the square is the fastest to check.
        finite = look and math.isfinite(target.dot(target).item())
        if look and not finite:
            warn_not_finite(type(self).__name__, mu_b + target)
        new_mean, new_var = mean.lerp(mu_b, alpha), moved_var(var, target, alpha, self.eps, self.averages == "variance")
        if not finite:
            new_mean, new_var = where_finite(new_mean, new_var, mean, var)
        mean.copy_(new_mean)
        var.copy_(new_var)

    def spread(self, sigma_b: Tensor) -> Tensor:
        """The value that is averaged: sigmaB, or the variance."""
        return spread(sigma_b, self.eps, self.averages == "variance")

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        mu, sigma, mean = (state_dict.get(prefix + name) for name in ("mu", "sigma", "running_mean"))
        if mu is not None and sigma is not None and mean is None:  # a checkpoint of this layer's first releases
            for name in ("mu", "sigma"):
                del state_dict[prefix + name]
            state_dict[prefix + "running_mean"] = mu
            state_dict[prefix + "running_var"] = (sigma.square() - self.eps).clamp_min(0)
            state_dict[prefix + "num_batches_tracked"] = torch.zeros((), dtype=torch.long, device=mu.device)
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._keep_wide()

    def _keep_wide(self) -> None:
        """Keep the averages in float32: in half precision they stall before they reach their values."""
        for name in ("running_mean", "running_var"):
            if (value := self._buffers[name]) is not None and value.dtype in HALF:
                setattr(self, name, value.float())

    def extra_repr(self) -> str:
        parts = [str(self.num_features), f"eps={self.eps}, momentum={self.momentum}"]
        given = {"affine": self.__dict__["_affine"]}
        if given["affine"]:
            given = {"scale": self.weight is not None, "center": self.bias is not None}
        parts += [f"{name}=False" for name, value in given.items() if not value]
        parts += [] if self.group_size is None else [f"group_size={self.group_size}"]
        parts += [f"rmax={self.rmax:g}, dmax={self.dmax:g}"]
        return ", ".join(parts + (["averages='variance'"] if self.averages == "variance" else []))

    def _apply(self, fn, recurse=True):
        before = self.moving_averages()
        super()._apply(fn, recurse)
        for name, old in zip(("running_mean", "running_var"), before, strict=True):
            new = getattr(self, name)
            if new.dtype in HALF:  # from the old values, so that they are not rounded to half precision
                setattr(self, name, old.to(new.device, torch.float32))
        device = self.mu.device
        if device != self.limits.device and device.type != "meta":
            self.limits = self.limits.to(device)
            if self.deferred is not None:
                self.deferred.to(device)
        return self

    def __getstate__(self) -> dict:
        # A copy is independent: the sums belong to the model that StepStatistics updates.
        return {**self.__dict__, "deferred": None}


class BatchRenorm1d(BatchRenorm, nn.BatchNorm1d):
    r"""Batch Renormalization of :math:`(N, C)` or :math:`(N, C, L)`; see :class:`BatchRenorm2d`."""

    dims, expected, folds_into = (2, 3), "(N, C) or (N, C, L)", nn.BatchNorm1d


class BatchRenorm2d(BatchRenorm, nn.BatchNorm2d):
    r"""Batch Renormalization of a 4-D input, in training

    .. math::
        y = \gamma \left(\frac{x - \mu_B}{\sigma_B}\, r + d\right) + \beta, \qquad
        r = \mathrm{clip}_{[1/r_{max},\, r_{max}]}(\sigma_B / \sigma), \quad
        d = \mathrm{clip}_{[-d_{max},\, d_{max}]}((\mu_B - \mu) / \sigma)

    and in evaluation :math:`y = \gamma (x - \mu) / \sigma + \beta`. Every training forward moves
    :math:`\mu \leftarrow \mu + \alpha (\mu_B - \mu)` and :math:`\sigma` likewise, by the mean over
    the groups of the batch, unless a :class:`StepStatistics` defers this to the end of the step.
    The paper relaxes the limits from (1, 0), which is batchnorm: :func:`set_limits` with a :class:`Ramp`.

    .. note::
        A NaN or infinity in a channel of the batch leaves the channel's mu and sigma unchanged. On CPU a
        RuntimeWarning says so; on an accelerator there is none, because the check would wait for it.

    .. note::
        Activation checkpointing repeats the forward after mu and sigma have moved. This is an error,
        unless StepStatistics defers the update to the end of the step; then it is exact.

    Args:
        num_features: channels, :math:`C`.
        eps: added to the variance, inside the root.
        momentum: the paper's alpha, the rate at which mu and sigma move. None, which ``update_bn`` sets,
            estimates them: the plain mean over all batches since ``reset_running_stats``, with r = 1, d = 0.
        affine: whether there are gamma and beta, as ``weight`` and ``bias``.
        track_running_stats: True. If a tool sets it to False later, mu and sigma stay.
        group_size: consecutive examples that are normalised together. Default: the whole batch.
        rmax, dmax: bounds of r and d until :func:`set_limits` is called.
        scale, center: whether there is a gamma; a beta. The paper's experiments have ``scale=False``.
        bias: same as ``center``, nn.BatchNorm's name for it.
        averages: ``"sigma"``, or ``"variance"`` for the batchnorm baseline.
        device, dtype: device and dtype of the parameters. mu and sigma are float32, or float64 for float64.

    Shape:
        - Input and output: :math:`(N, C, H, W)`, same dtype and memory format; an empty batch gives an empty one.

    Raises:
        ValueError: wrong dimension or channels, a batch that does not divide into groups.
        RuntimeError: a training forward inside backward without a deferred update.

    Example::

        >>> norm = BatchRenorm2d(64, group_size=4)
        >>> y = norm(torch.randn(32, 64, 35, 35))
    """

    dims, expected = (4,), "(N, C, H, W)"
    folds_into: type[nn.Module] = nn.BatchNorm2d


class BatchRenorm3d(BatchRenorm, nn.BatchNorm3d):
    r"""Batch Renormalization of :math:`(N, C, D, H, W)`; see :class:`BatchRenorm2d`."""

    dims, expected, folds_into = (5,), "(N, C, D, H, W)", nn.BatchNorm3d


class BatchRenormNd(BatchRenorm, nn.BatchNorm2d):
    """Replaces nn.SyncBatchNorm: takes any dimension, and is a BatchNorm2d for tools that look for one."""


def layers_of(model: nn.Module) -> dict[str, BatchRenorm]:
    """Every BatchRenorm layer of a model by name; ValueError if there is none."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, BatchRenorm)}
    if not layers:
        raise ValueError(
            f"{type(model).__name__} has no BatchRenorm layer: build it with one, or convert its "
            "batchnorm with convert_batchnorm(model)"
        )
    return layers


def has_layers(model: nn.Module) -> bool:
    """Whether a model has a BatchRenorm layer, so that its output for an image depends on a group."""
    return any(isinstance(module, BatchRenorm) for module in model.modules())


def limits_tensor(rmax: float, dmax: float, device: torch.device) -> Tensor:
    limits = torch.empty(2, dtype=torch.float32, device="cpu" if device.type == "meta" else device)
    fill_limits(limits, rmax, dmax)
    return limits


def fill_limits(limits: Tensor, rmax: float, dmax: float) -> None:
    with torch.inference_mode(limits.is_inference()), torch.no_grad():
        limits[0].fill_(rmax)
        limits[1].fill_(dmax)


def warn_not_finite(layer: str, moments: Tensor) -> None:
    """Warn if the mean or spread over the groups is not finite in some channels."""
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


def _refuse_training(module: nn.Module, inputs: tuple) -> None:
    if module.training:
        raise RuntimeError(
            "this graph was traced in evaluation mode, where Batch Renorm is batchnorm: trace model.train() to train it"
        )


def _check_options(num_features, eps, momentum, track_running_stats, group_size, averages) -> None:
    for good, message in (
        (num_features >= 1, f"num_features must be at least 1, got {num_features}"),
        (eps > 0, f"eps must be positive, got {eps}: it bounds sigma away from 0"),
        (momentum is None or 0 <= momentum <= 1, f"momentum must be between 0 and 1, got {momentum}: it is the rate of "
         "the update, as in torch"),
        (track_running_stats, "Batch Renorm needs its averages: track_running_stats must be True"),
        (group_size is None or group_size >= 1, f"group_size must be at least 1, got {group_size}"),
        (averages in ("sigma", "variance"), f"averages must be 'sigma' or 'variance', got {averages!r}"),
    ):  # fmt: skip
        if not good:
            raise ValueError(message)
