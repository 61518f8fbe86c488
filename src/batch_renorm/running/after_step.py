"""What happens after a step, in this order: evaluate, checkpoint, record, stop."""

import sys
import time
from contextlib import suppress
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from batch_renorm.data.kept import KeptImages
from batch_renorm.data.loaders import Pass
from batch_renorm.errors import DiskFullError
from batch_renorm.records import curve
from batch_renorm.running import checkpoints
from batch_renorm.running.build import Run
from batch_renorm.running.folder import Folder, provenance
from batch_renorm.running.launch import World
from batch_renorm.running.opening import opening
from batch_renorm.training.distance import activation_distances
from batch_renorm.training.evaluation import ON_MINIBATCHES, Evaluation, evaluate


class AfterStep(Callback):
    """Evaluates when due, writes a checkpoint after each evaluation and before a stop, and updates run.json.

    Args:
        evaluation: the run's evaluation, with the batch size that fits the device.
        kept: validation images that stay in memory between evaluations.
        execution: how the run computes, for run.json.
    """

    def __init__(
        self,
        run: Run,
        folder: Folder,
        world: World,
        evaluation: Evaluation,
        kept: KeptImages,
        execution: dict[str, Any],
    ) -> None:
        self.run, self.folder, self.world = run, folder, world
        self.evaluation, self.kept, self.execution = evaluation, kept, execution
        self.measurements = evaluation.measurements(run.source)
        self.as_trained = evaluation.as_trained(run.source)
        self.started, self.earlier = time.perf_counter(), 0.0
        self.best: tuple[float, int] | None = None  # val_top1, step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for step, metric, value in curve.read_rows(self.folder.curve):
            if metric == "val_top1":
                self._note(step, value)
        self._begin_record(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Pass, batch_idx: int
    ) -> None:
        if not batch.last:
            return
        step, stopping = batch.step + 1, self.run.stop.decided is not None
        due = self.run.evaluation.due(step, self.run.size.steps)
        if due:
            self._evaluate(trainer, step)
        if due or stopping:
            checkpoints.write(trainer, self.folder.path, step, self.best[1] if self.best else None)
        if due:
            self._write("running", step)
        trainer.should_stop = stopping

    def _evaluate(self, trainer: Trainer, step: int) -> None:
        run, rank, ranks = self.run, trainer.global_rank, trainer.world_size
        model, device = run.training.inference_model(step), run.training.device
        due = self.measurements
        if not self.evaluation.minibatches_due(step, run.size.steps):
            due = {name: due[name] for name in due if name not in ON_MINIBATCHES}
        metrics = evaluate(model, run.source, due, device, rank=rank, ranks=ranks, kept=self.kept)
        metrics |= activation_distances(model, run.source, self.as_trained, device, rank, ranks)
        run.training.record(metrics, step)
        run.training.restart_clock(step)
        for logger in trainer.loggers:
            logger.save()  # before the checkpoint: a resumed run expects these rows
        self._note(step, metrics["val_top1"])

    def _note(self, step: int, value: float) -> None:
        if self.best is None or value > self.best[0]:
            self.best = value, step

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["config"] = self.run.config

    @rank_zero_only
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == self.run.size.steps:
            self._write("finished", trainer.global_step)
        elif self.run.stop.decided is not None:
            self._write("stopped", trainer.global_step, reason=self.run.stop.decided.name)

    @rank_zero_only
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        with suppress(OSError, DiskFullError):  # a full disk may have caused the exception
            self._write("stopped", trainer.global_step, reason=str(exception) or type(exception).__name__)

    @rank_zero_only
    def _begin_record(self, trainer: Trainer) -> None:
        before, step = self.folder.record(), trainer.global_step
        self.earlier = before["wall_seconds"]
        speed = before.get("images_per_second")
        print(
            opening(self.run, self.world, self.execution, self.folder.path, step, speed),
            file=sys.stderr,
            flush=True,
        )
        self._write(
            "running", step, reason=None, ranks=trainer.world_size, launcher=self.world.launcher,
            **self.execution, **provenance(device_name(trainer.strategy.root_device)),
        )  # fmt: skip

    @rank_zero_only
    def _write(self, state: str, step: int, **more: Any) -> None:
        """Write state, steps done, time spent and what the result depends on to run.json."""
        seconds = time.perf_counter() - self.started
        if "images_per_second" in self.run.training.latest:
            more["images_per_second"] = self.run.training.latest["images_per_second"]
        self.folder.write_record(
            state=state, step=step, steps=self.run.size.steps, wall_seconds=round(self.earlier + seconds, 1), **more
        )


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
