"""The Lightning module: one exact step of the paper, in any number of passes on any number of ranks.

A step is the mean over workers x minibatch examples of d(loss)/d(theta), one update of the weights, one
move of mu and sigma, one update of the inference model. Lightning's batch is a *pass*: the
module accumulates gradients over the passes of a step and updates after the last pass. Therefore
optimisation is manual.
"""

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import ClassVar, Protocol

import torch
import torch.distributed as dist
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from batch_renorm.data.loaders import Pass, Source
from batch_renorm.errors import NotFiniteError
from batch_renorm.norm import StepStatistics, set_limits
from batch_renorm.norm.layers import BatchRenorm, has_layers
from batch_renorm.training.averaging import InferenceModel
from batch_renorm.training.loss import Loss
from batch_renorm.training.optimizer import Optimization
from batch_renorm.training.random_layers import RandomLayers
from batch_renorm.training.stages import Stages

STEPS_ALWAYS_CHECKED = 10  # after a start; on a GPU later steps are checked only when recorded


class Vote(Protocol):
    """Whether to stop the run: ranks vote in the all-reduce of every step, so that all stop after the same step."""

    def ballot(self, device: torch.device) -> Tensor:
        """This rank's vote, float32 (2,), to be summed over the ranks."""

    def decide(self, votes: Tensor | None) -> None:
        """Decide after a step from the sum of the votes; a single rank has none."""


class Training(LightningModule):
    """Trains `model` on passes; `average.module` is the decayed average, which is evaluated.

    Args:
        model: images (n, channels, size, size) to logits (n, classes), or in training to logits and
            the auxiliary head's logits. No other norms than its BatchRenorm layers depend on the minibatch.
        source: makes images of what loader processes fetched.
        loss: the loss of each example.
        optimization: the update.
        ramp: step -> (rmax, dmax); None keeps (1, 0), which is batchnorm.
        average_decay: decay of the inference model.
        examples: workers x minibatch size, the number of examples in a step's loss.
        log_every: steps between recorded rows of loss, rates and clipping.
        vote: the vote on stopping; None without one.
        bf16: run the network's forward and backward under bfloat16 autocast.
        channels_last: the memory layout, which is the faster one for convolutions on CPU and GPU.
        compile: compile the network when it trains: True, or a mode of torch.compile.
    """

    def __init__(
        self,
        model: nn.Module,
        source: Source,
        loss: Loss,
        optimization: Optimization,
        ramp: Callable[[int], tuple[float, float]] | None,
        average_decay: float,
        examples: int,
        log_every: int,
        vote: Vote | None = None,
        bf16: bool = False,
        channels_last: bool = True,
        compile: bool | str = False,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.source, self.loss, self.optimization = source, loss, optimization
        self.examples, self.log_every = examples, log_every
        groups = has_layers(model)
        self.ramp = ramp if groups else None
        if groups:
            set_limits(model, 1.0, 0.0)
        self.bf16 = bf16
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        model.to(memory_format=self.memory_format)
        self.average = InferenceModel(model, average_decay)
        if compile:  # in place: names in checkpoints, and the inference model, stay as they are
            model.compile(dynamic=False, mode=None if compile is True else compile)
        self.statistics = StepStatistics(model) if groups else NoStatistics()
        self.random_layers = RandomLayers(model)
        self.latest: dict[str, float] = {}
        self.vote = vote
        self.stages = Stages()
        self._replaced: Tensor | float = 0.0
        self._loss_sum: Tensor | None = None
        self._clock = (0, time.perf_counter())
        self._first = 0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimization.optimizer(self.model)

    def inference_model(self, step: int) -> nn.Module:
        """The average after `step` updates, with the limits of the last update; evaluations use it."""
        model = self.average.module
        assert isinstance(model, nn.Module)
        if self.statistics.layers:
            set_limits(model, *self.limits(step - 1))
        return model

    def limits(self, step: int) -> tuple[float, float]:
        """rmax and dmax of the update that follows `step` updates."""
        return self.ramp(step) if self.ramp is not None else (1.0, 0.0)

    def on_train_start(self) -> None:
        self._first = self.trainer.global_step
        self.restart_clock(self.trainer.global_step)

    def restart_clock(self, step: int) -> None:
        """Count images per second from now on, without the time before, such as an evaluation."""
        self._clock = (step, time.perf_counter())
        self.stages.restart()

    def losses(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """The loss of each example, float32 (n,)."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
            output = model(images)
        return self.loss(output, labels)

    def training_step(self, batch: Pass, index: int) -> None:
        if self._loss_sum is None:
            self._begin_step(batch.step)
        self.stages.start("step", self.device)
        self.stages.loaded(batch.fetched)
        if len(batch.labels):  # a rank may own fewer workers than there are passes
            self._backward(batch)
        if batch.last:
            self._end_step(batch.step)
        else:
            self.stages.stop("step", self.device)

    def _begin_step(self, step: int) -> None:
        self._loss_sum = torch.zeros(1, device=self.device)
        if self.ramp is not None:
            set_limits(self.statistics.layers.values(), *self.ramp(step))
            self.statistics.measure_clipping = self._recorded(step + 1)

    def _backward(self, batch: Pass) -> None:
        self.stages.start("transfer", self.device)
        batch.arrive(self.device)
        images = self.source.images(batch.fetched, self.device).contiguous(memory_format=self.memory_format)
        self.stages.stop("transfer", self.device)
        with self.random_layers.drawing(batch.draw, len(images), self.device):
            losses = self.losses(self.model, images, batch.labels.to(self.device, non_blocking=True))
        # DDP takes the mean over ranks, whatever their shares; multiplied by the ranks it is the sum.
        loss = losses.sum() * (self.trainer.world_size / self.examples)
        ddp = self.trainer.world_size > 1
        with nullcontext() if batch.last or not ddp else self.trainer.strategy.block_backward_sync():  # type: ignore[attr-defined]
            self.manual_backward(loss)
        assert self._loss_sum is not None
        self._loss_sum += losses.detach().sum()

    def _end_step(self, step: int) -> None:
        """Update weights, then mu and sigma, then the inference model; `step` updates came before."""
        optimizer = self.optimizers()
        rate = self.optimization.learning_rate(step)
        for group in optimizer.param_groups:  # type: ignore[union-attr]
            group["lr"] = rate
        # from the optimiser: model.parameters() takes as long as a small layer's gradient
        parameters = [p for group in optimizer.param_groups for p in group["params"]]  # type: ignore[union-attr]
        norm = nn.utils.clip_grad_norm_(parameters, self.optimization.clip_norm, foreach=True)
        optimizer.step()  # type: ignore[union-attr]
        optimizer.zero_grad()  # type: ignore[union-attr]
        assert self._loss_sum is not None
        replaced = torch.full_like(self._loss_sum, self.stages.replaced())
        ballot = [] if self.vote is None else [self.vote.ballot(self.device)]
        summed = self.statistics.update(extra=torch.cat([self._loss_sum, replaced, *ballot]))
        assert summed is not None
        loss, replaced, *votes = summed.split([1, 1, *map(len, ballot)])
        self._replaced += replaced
        if self.vote is not None:
            self.vote.decide(votes[0] if self.trainer.world_size > 1 else None)
        self._loss_sum = None
        self.average.update_parameters(self.model)
        self.stages.stop("step", self.device)
        recorded = self._recorded(step + 1)
        # On an accelerator reading a value waits for the device: only for recorded steps and the first ones.
        if recorded or self.device.type == "cpu" or step < self._first + STEPS_ALWAYS_CHECKED:
            self.latest["loss"] = loss.item() / self.examples
            self._check_finite(step + 1, self.latest["loss"], norm.item())
        if recorded:
            self._record_step(step + 1, loss.item() / self.examples, norm.item(), rate)

    def _recorded(self, step: int) -> bool:
        return step % self.log_every == 0 or step == self.trainer.max_steps

    def _record_step(self, step: int, loss: float, gradient_norm: float, rate: float) -> None:
        rmax, dmax = self.limits(step - 1)
        since, start = self._clock
        wall, steps = time.perf_counter() - start, step - since
        row = {"loss": loss, "gradient_norm": gradient_norm, "lr": rate}
        row |= {"rmax": rmax, "dmax": dmax} if self.statistics.layers else {}
        row |= {"images_per_second": steps * self.examples / wall} | self.stages.take(wall, steps)
        self.restart_clock(step)
        if self.source.skips_unreadable:
            row["images_replaced"] = float(self._replaced)
            self._replaced = 0.0
        if self.ramp is not None:
            for name, (r, d) in self.statistics.clipped_fractions().items():
                row[f"r_clipped/{name}" if name else "r_clipped"] = r
                row[f"d_clipped/{name}" if name else "d_clipped"] = d
        self.record(row, step)

    def record(self, metrics: dict[str, float], step: int) -> None:
        """Write metrics of the model after `step` updates to every logger."""
        self.latest |= metrics
        for logger in self.loggers:
            logger.log_metrics(metrics, step)

    def _check_finite(self, step: int, loss: float, gradient_norm: float) -> None:
        if all(map(torch.isfinite, torch.tensor([loss, gradient_norm]))):
            return
        largest = {
            name: torch.maximum(layer.mu.abs(), layer.sigma).max().item()
            for name, layer in self.statistics.layers.items()
        }
        where, cure = "", ""
        if largest:
            name = max(largest, key=largest.__getitem__)
            where = f" The layer with the largest moving statistics is {name!r} ({largest[name]:.4g})."
            cure = " or a slower ramp"
        raise NotFiniteError(
            f"step {step}: loss {loss}, gradient norm {gradient_norm}.{where} Try a lower learning rate (optim.lr)"
            f"{cure}"
        )


class NoStatistics:
    """Replaces StepStatistics if no norm has mu and sigma: only the all-reduce of the other sums remains."""

    layers: ClassVar[dict[str, BatchRenorm]] = {}
    measure_clipping = False

    def update(self, extra: Tensor) -> Tensor:
        """`extra`, 1-d, summed over the ranks."""
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(extra)
        return extra

    def clipped_fractions(self) -> dict[str, tuple[float, float]]:
        return {}
