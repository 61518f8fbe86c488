"""The Lightning module: one exact step of the paper, in any number of passes on any number of ranks.

A step is the mean over workers x minibatch examples of d(loss)/d(theta), one update of the weights, one move of mu and
sigma, one update of the inference model. Lightning's batch is a *pass*: gradients add up over the passes of a step, and
the update follows the last one. Therefore optimisation is manual.
"""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Protocol

import torch
import torch.distributed as dist
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from batch_renorm.data.loaders import Pass, Source
from batch_renorm.errors import NotFiniteError
from batch_renorm.norm import StepStatistics, set_limits
from batch_renorm.norm.layers import has_layers, layers_of
from batch_renorm.training.averaging import InferenceModel
from batch_renorm.training.loss import Loss
from batch_renorm.training.optimizer import Optimization
from batch_renorm.training.random_layers import RandomLayers

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
        ramp: step -> (rmax, dmax); None keeps (1, 0), which is batchnorm.
        average_decay: of the inference model.
        examples: workers x minibatch size, the number of examples in a step's loss.
        log_every: steps between recorded rows of loss, rates and clipping.
        bf16: run the network's forward and backward under bfloat16 autocast.
        compile: compile the network when it trains.
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
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.source, self.loss, self.optimization = source, loss, optimization
        self.examples, self.log_every = examples, log_every
        self.layers = layers_of(model) if has_layers(model) else {}
        self.ramp = ramp if self.layers else None
        set_limits(self.layers.values(), 1.0, 0.0)
        self.bf16 = bf16
        model.to(memory_format=torch.channels_last)  # faster for convolutions on CPU and GPU
        self.average = InferenceModel(model, average_decay)
        if compile:  # in place: names in checkpoints, and the inference model, stay as they are
            model.compile(dynamic=False)
        self.statistics = StepStatistics(model) if self.layers else None
        self.random_layers = RandomLayers(model, compile)
        self.latest: dict[str, float] = {}
        self.vote = vote
        self._loss_sum: Tensor | None = None
        self._first = 0
        self.restart_clock(0)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimization.optimizer(self.model)

    def inference_model(self, step: int) -> nn.Module:
        """The average after `step` updates, with the limits of the last update; evaluations use it."""
        model = self.average.module
        assert isinstance(model, nn.Module)
        if self.layers:
            set_limits(model, *self.limits(step - 1))
        return model

    def limits(self, step: int) -> tuple[float, float]:
        """rmax and dmax of the update that follows `step` updates."""
        return self.ramp(step) if self.ramp is not None else (1.0, 0.0)

    def on_train_start(self) -> None:
        self._first = self.trainer.global_step
        self.restart_clock(self.trainer.global_step)

    def restart_clock(self, step: int) -> None:
        """Measure speed and waiting from now on, without the time before, such as an evaluation."""
        self._clock, self._waited = (step, time.perf_counter()), 0.0
        self._idle_since = time.perf_counter()

    def losses(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """The loss of each example, float32 (n,)."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
            output = model(images)
        return self.loss(output, labels)

    def transfer_batch_to_device(self, batch: Pass, device: torch.device, dataloader_idx: int) -> Pass:
        """Do nothing: `SentAhead` has started the copy, and the step waits for it."""
        return batch

    def training_step(self, batch: Pass, index: int) -> None:
        if self._loss_sum is None:
            self._begin_step(batch.step)
        self._waited += time.perf_counter() - self._idle_since
        if len(batch.labels):  # a rank may own fewer workers than there are passes
            self._backward(batch)
        if batch.last:
            self._end_step(batch.step)
        self._idle_since = time.perf_counter()

    def _begin_step(self, step: int) -> None:
        self._loss_sum = torch.zeros(1, device=self.device)
        if self.ramp is not None and self.statistics is not None:
            set_limits(self.layers.values(), *self.ramp(step))
            self.statistics.measure_clipping = self._recorded(step + 1)

    def _backward(self, batch: Pass) -> None:
        batch.arrive(self.device)
        images = self.source.images(batch.fetched, self.device).contiguous(memory_format=torch.channels_last)
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
        optimizer: Any = self.optimizers()
        rate = self.optimization.learning_rate(step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        # from the optimiser: model.parameters() takes as long as a small layer's gradient
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, self.optimization.clip_norm, foreach=True)
        optimizer.step()
        optimizer.zero_grad()
        assert self._loss_sum is not None
        ballot = [] if self.vote is None else [self.vote.ballot(self.device)]
        sums = self._move_statistics(torch.cat([self._loss_sum, *ballot]))
        loss, *votes = sums.split([1, *map(len, ballot)])
        if self.vote is not None:
            self.vote.decide(votes[0] if self.trainer.world_size > 1 else None)
        self._loss_sum = None
        self.average.update_parameters(self.model)
        recorded = self._recorded(step + 1)
        # On an accelerator reading a value waits for the device: only for recorded steps and the first ones.
        if recorded or self.device.type == "cpu" or step < self._first + STEPS_ALWAYS_CHECKED:
            self.latest["loss"] = loss.item() / self.examples
            self._check_finite(step + 1, self.latest["loss"], norm.item())
        if recorded:
            self._record_step(step + 1, loss.item() / self.examples, norm.item(), rate)

    def _move_statistics(self, extra: Tensor) -> Tensor:
        """Move mu and sigma by the step's groups; `extra`, 1-d, summed over the ranks in the same all-reduce."""
        if self.statistics is not None:
            extra = self.statistics.update(extra)  # type: ignore[assignment]
        elif self.trainer.world_size > 1:
            dist.all_reduce(extra)
        return extra

    def _recorded(self, step: int) -> bool:
        return step % self.log_every == 0 or step == self.trainer.max_steps

    def _record_step(self, step: int, loss: float, gradient_norm: float, rate: float) -> None:
        since, start = self._clock
        wall, steps = time.perf_counter() - start, step - since
        row = {"loss": loss, "gradient_norm": gradient_norm, "lr": rate}
        row |= dict(zip(("rmax", "dmax"), self.limits(step - 1), strict=True)) if self.layers else {}
        row |= {"images_per_second": steps * self.examples / wall}
        row |= {"seconds_wait": self._waited / steps, "seconds_step": (wall - self._waited) / steps}
        self.restart_clock(step)
        if self.ramp is not None and self.statistics is not None:
            for name, (r, d) in self.statistics.clipped_fractions().items():
                place = f"/{name}" * bool(name)
                row |= {f"r_clipped{place}": r, f"d_clipped{place}": d}
        self.record(row, step)

    def record(self, metrics: dict[str, float], step: int) -> None:
        """Write metrics of the model after `step` updates to every logger."""
        self.latest |= metrics
        for logger in self.loggers:
            logger.log_metrics(metrics, step)

    def _check_finite(self, step: int, loss: float, gradient_norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(gradient_norm):
            return
        text, cure = f"step {step}: loss {loss}, gradient norm {gradient_norm}.", "a lower learning rate (optim.lr)"
        if self.layers:
            sizes = [(torch.maximum(of.mu.abs(), of.sigma).max().item(), name) for name, of in self.layers.items()]
            largest, name = max(sizes)
            text += f" The layer with the largest moving statistics is {name!r} ({largest:.4g})."
            cure += " or a slower ramp"
        raise NotFiniteError(f"{text} Try {cure}")
