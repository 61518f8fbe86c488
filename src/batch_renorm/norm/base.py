"""The layer for an input of any dimension, with the arguments and the state of nn.BatchNorm.

Departures from nn.BatchNorm: ``running_var`` is biased, and what is averaged is sigma = sqrt(running_var + eps). The
averages stay float32 in a half precision model. The limits are not a buffer: they follow the step.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from batch_renorm.norm.algorithm1 import can_read_values, forbid_recompute, in_dtype, moved, spread, warn_not_finite
from batch_renorm.norm.functional import check_input, check_options, transform
from batch_renorm.norm.kernels import HALF
from batch_renorm.norm.ramp import Ramp


class BatchRenorm(_BatchNorm):
    r"""Batch Renormalization of an input of any dimension; see :class:`BatchRenorm2d`."""

    dims: tuple[int, ...] = ()
    expected = "(N, C, ...)"
    folds_into: type[nn.Module] = nn.SyncBatchNorm  # also takes any dimension
    deferred: Any = None  # a GroupSums that collects the statistics, if the layer does not update at once
    batch_statistics: int | None = None  # group size in evaluation, 0 for the whole batch
    num_batches_tracked: Tensor

    def __init__(
        self, num_features: int, eps: float = 1e-3, momentum: float | None = 0.01, affine: bool = True,
        track_running_stats: bool = True, device: torch.device | str | None = None, dtype: torch.dtype | None = None, *,
        group_size: int | None = None, rmax: float = 3.0, dmax: float = 5.0, scale: bool = True, center: bool = True,
        bias: bool = True, averages: Literal["sigma", "variance"] = "sigma", ramp: Ramp | None = None,
    ) -> None:  # fmt: skip
        if num_features < 1:
            raise ValueError(f"num_features must be at least 1, got {num_features}")
        if momentum is not None and not 0 <= momentum <= 1:
            raise ValueError(f"momentum must be between 0 and 1, got {momentum}: it is the rate of the update")
        if not track_running_stats:
            raise ValueError("Batch Renorm needs its averages: track_running_stats must be True")
        if averages not in ("sigma", "variance"):
            raise ValueError(f"averages must be 'sigma' or 'variance', got {averages!r}")
        check_options(rmax, dmax, eps, group_size)
        if ramp is not None and not isinstance(ramp, Ramp):
            raise TypeError(f"ramp must be a Ramp, got {ramp!r}")
        if ramp is not None and (rmax, dmax) != (3.0, 5.0):
            raise ValueError(f"the ramp has the bounds: Ramp(..., rmax={rmax}, dmax={dmax})")
        super().__init__(num_features, eps=eps, momentum=momentum, affine=affine, device=device, dtype=dtype)
        if not scale:
            self.register_parameter("weight", None)
        if not (center and bias):
            self.register_parameter("bias", None)
        self.group_size = group_size
        self.averages = averages
        self.folds_without_bias = not bias
        device = "cpu" if self.mu.is_meta else self.mu.device
        self.fixed_limits = torch.tensor([rmax, dmax], dtype=torch.float32, device=device)
        self.ramp = ramp

    @property
    def mu(self) -> Tensor:
        """The paper's mu, (C): ``running_mean`` itself."""
        return self.moving_averages()[0]

    @mu.setter
    def mu(self, value: Tensor) -> None:
        self.mu.copy_(value.detach())

    @property
    def sigma(self) -> Tensor:
        """The paper's sigma, (C): sqrt(running_var + eps), a new tensor. To change it, assign it."""
        return (self.moving_averages()[1] + self.eps).sqrt()

    @sigma.setter
    def sigma(self, value: Tensor) -> None:
        self.moving_averages()[1].copy_((value.detach().square() - self.eps).clamp_min(0))

    @property
    def limits(self) -> Tensor:
        """The bounds of r and d, (2) float32."""
        return self.fixed_limits if self.ramp is None else self.ramp.of_tensor(self.num_batches_tracked)

    rmax = property(lambda self: self.limits[0].item(), doc="The bound of r; reading it waits for an accelerator.")
    dmax = property(lambda self: self.limits[1].item(), doc="The bound of d; reading it waits for an accelerator.")

    def as_batchnorm(self) -> nn.Module:
        """The batchnorm with the same outputs in evaluation; it shares the layer's tensors."""
        mean, _ = self.moving_averages()
        stock: Any = type(self).folds_into
        options = {"affine": self.affine, "device": mean.device, "dtype": mean.dtype}
        module = stock(self.num_features, eps=self.eps, momentum=self.momentum, **options)
        module.__class__ = self.folds_into  # a subclass, whose constructor may take other arguments
        for name in ("weight", "bias"):
            if (value := getattr(self, name)) is not None:
                if name not in self._parameters or value.dtype != mean.dtype:  # pruned, or half beside float32
                    value = nn.Parameter(value.detach().to(mean.dtype, copy=True), value.requires_grad)
                module._parameters[name] = value
        if self.folds_without_bias:
            module.register_parameter("bias", None)
        module._buffers.update(self._buffers)
        return module.train(self.training)

    def reset_running_stats(self) -> None:
        if self.deferred is not None:
            raise RuntimeError("StepStatistics moves mu and sigma: release() it before they are estimated anew")
        super().reset_running_stats()

    def reset_parameters(self) -> None:
        self.reset_running_stats()
        for parameter, value in ((self.weight, 1.0), (self.bias, 0.0)):
            if parameter is not None:
                nn.init.constant_(parameter, value)

    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, Proxy):  # torch.fx's tracer, for which the layer is one node, as batchnorm is
            return input.tracer.create_proxy("call_module", input.tracer.path_of_module(self), (input,), {})
        if self.training:
            return self._train(input)
        mean, var = self.moving_averages()
        groups = self._groups(input, self.batch_statistics or None)
        if self.batch_statistics is not None:
            return transform(input, mean, self.sigma, self.weight, self.bias, 1.0, 0.0, self.eps, groups)[0]
        dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
        mean, var, gamma, beta = in_dtype(dtype, mean, var, self.weight, self.bias)
        return F.batch_norm(input, mean, var, gamma, beta, False, 0.0, self.eps)

    def moving_averages(self) -> tuple[Tensor, Tensor]:
        """running_mean and running_var themselves."""
        mean, var = self._buffers["running_mean"], self._buffers["running_var"]  # attributes take five times as long
        if mean is None or var is None:
            raise ValueError(f"{type(self).__name__} has lost running_mean and running_var")
        if mean.dtype in HALF or var.dtype in HALF:  # of a checkpoint, or FSDP has changed them
            self._keep_wide(mean, var)
            return self.moving_averages()
        return mean, var

    def _groups(self, x: Tensor, group_size: int | None) -> int:
        if self.dims and x.dim() not in self.dims:
            raise ValueError(f"{type(self).__name__} needs an input {self.expected}, got shape {tuple(x.shape)}")
        if torch.jit.is_tracing():  # checks of a shape would warn, or become part of the trace
            return 1 if group_size is None else x.shape[0] // group_size
        return check_input(x, self.num_features, group_size)

    def _train(self, x: Tensor) -> Tensor:
        recomputing = not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1  # inside backward
        moves = self.deferred is None and self.track_running_stats
        forbid_recompute(moves and recomputing)
        mean, var = self.moving_averages()
        groups = self._groups(x, self.group_size)
        can_read = can_read_values(x)
        # Floats are faster if nothing waits. A replica of nn.DataParallel has the limits of another device.
        rmax, dmax = self.limits.tolist() if can_read else self.limits.to(x.device).unbind()
        if self.momentum is None or self.momentum == 1:
            rmax, dmax = 1.0, 0.0  # r and d from unfinished averages would distort the inputs of later layers
        sigma = (var + self.eps).sqrt_()
        state = mean, sigma, self.weight, self.bias
        y, mu_b, sigma_b = transform(x, *state, rmax, dmax, self.eps, groups, moves)
        if recomputing or not self.track_running_stats or not x.numel():
            return y
        if self.deferred is not None:
            self.deferred.add(self, mu_b, sigma_b)
        else:
            self._move(mean, var, sigma, mu_b, sigma_b, can_read)
        return y

    def _move(self, mean: Tensor, var: Tensor, sigma: Tensor, mu_b: Tensor, sigma_b: Tensor, can_read: bool) -> None:
        """Update the averages in place."""
        self.num_batches_tracked.add_(1)
        alpha = self.momentum if self.momentum is not None else self.num_batches_tracked.to(mean.dtype).reciprocal()
        target = spread(sigma_b, self.averages, self.eps)
        mu_b, target = (t.to(mean.dtype) if t.dim() == 1 else t.mean(0).to(mean.dtype) for t in (mu_b, target))
        # If the mean is not finite, neither are the spread and its square; the square is the fastest to check.
        if can_read and math.isfinite(target.dot(target).item()):
            mean.lerp_(mu_b, alpha)  # in place, without the checks of `moved`, and from the sigma that is at hand
            if self.averages == "variance":
                var.lerp_(target, alpha)
            else:
                torch.square(sigma.lerp_(target, alpha), out=var).sub_(self.eps).clamp_min_(0)
            return
        if can_read:
            warn_not_finite(type(self).__name__, mu_b + target)
        new_mean, new_var = moved(mean, var, mu_b, target, alpha, self.eps, self.averages == "variance")
        mean.copy_(new_mean)
        var.copy_(new_var)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.moving_averages()  # which are float32 afterwards

    def _keep_wide(self, mean: Tensor, var: Tensor) -> None:
        """Keep the averages in float32, with these values: in half precision they stall before they reach them."""
        for name, value in (("running_mean", mean), ("running_var", var)):
            if (old := getattr(self, name)).dtype in HALF:
                setattr(self, name, value.to(old.device, torch.float32))

    def extra_repr(self) -> str:
        options = f"group_size={self.group_size}, scale={self.weight is not None}, center={self.bias is not None}"
        if self.ramp is not None:
            options += f", ramp={self.ramp}"
        elif type(self.fixed_limits) is Tensor:  # a fake one has no value
            options += f", rmax={self.rmax:g}, dmax={self.dmax:g}"
        return f"{super().extra_repr()}, {options}, averages={self.averages!r}"

    def _apply(self, fn, recurse=True):
        before = self.moving_averages()
        super()._apply(fn, recurse)
        self._keep_wide(*before)  # as they were before they were rounded to half precision
        device = self.mu.device
        if device != self.fixed_limits.device and device.type != "meta":
            self.fixed_limits = self.fixed_limits.to(device)
            if self.deferred is not None:
                self.deferred.to(device)
        return self

    def __getstate__(self) -> dict:
        # A copy is independent, unless its StepStatistics is copied with it, and then joins them again.
        return {name: value for name, value in vars(self).items() if name != "deferred"}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self.fixed_limits = self.fixed_limits.clone()  # pickled for another process, it shares its memory

    def __prepare_scriptable__(self) -> None:  # what torch.jit.script asks for
        text = f"torch.jit.script does not know {type(self).__name__}: script to_batchnorm(copy.deepcopy(model.eval()))"
        raise RuntimeError(f"{text}, or use torch.jit.trace(model.eval(), x)")
