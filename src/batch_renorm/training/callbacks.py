"""What happens at the end of a step besides the step itself: evaluation and the run's record."""

import sys
import time
from contextlib import suppress
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from batch_renorm.data.kept import KeptImages
from batch_renorm.data.loaders import Pass
from batch_renorm.training.build import Run
from batch_renorm.training.distance import activation_distances
from batch_renorm.training.errors import DiskFullError
from batch_renorm.training.evaluation import Evaluation, evaluate
from batch_renorm.training.folder import Folder, provenance
from batch_renorm.training.launch import Place
from batch_renorm.training.opening import opening


class Evaluate(Callback):
    """Evaluates the inference model when due; comes before the checkpoint of the same step."""

    def __init__(self, run: Run, evaluation: Evaluation, kept: KeptImages) -> None:
        self.run, self.evaluation, self.kept = run, evaluation, kept

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Pass, batch_idx: int
    ) -> None:
        run, step = self.run, batch.step + 1
        if not batch.last or not run.evaluation.due(step, run.size.steps):
            return
        model, device = run.training.inference_model(step), run.training.device
        rank, ranks = trainer.global_rank, trainer.world_size
        metrics = evaluate(model, run.source, self.evaluation, device, rank=rank, ranks=ranks, kept=self.kept)
        minibatches = run.evaluation.as_trained(run.source)
        metrics |= activation_distances(model, run.source, minibatches, device, rank, ranks)
        run.training.record(metrics, step)
        run.training.restart_clock(step)
        for logger in trainer.loggers:
            logger.save()


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"


class Record(Callback):
    """Keeps run.json: state, steps done, time spent, and what the result depends on."""

    def __init__(self, run: Run, folder: Folder, place: Place, stated: dict[str, Any]) -> None:
        self.run, self.folder, self.place, self.stated = run, folder, place, stated
        self.started, self.earlier = time.perf_counter(), 0.0

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        name = device_name(trainer.strategy.root_device)
        before, step = self.folder.record(), trainer.global_step
        self.earlier = before["wall_seconds"]
        speed = before.get("images_per_second")
        print(opening(self.run, self.place, self.stated, self.folder.path, step, speed), file=sys.stderr, flush=True)
        self._write(
            "running", step, reason=None, ranks=trainer.world_size, launcher=self.place.launcher,
            **self.stated, **provenance(name),
        )  # fmt: skip

    @rank_zero_only
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Pass, batch_idx: int
    ) -> None:
        if batch.last and self.run.evaluation.due(batch.step + 1, self.run.size.steps):
            self._write("running", batch.step + 1)

    @rank_zero_only
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == self.run.size.steps:
            self._write("finished", trainer.global_step)
        elif self.run.training.stop.decided is not None:
            self._write("stopped", trainer.global_step, reason=self.run.training.stop.decided.name)

    @rank_zero_only
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        with suppress(OSError, DiskFullError):  # which may be the exception's own cause
            self._write("stopped", trainer.global_step, reason=str(exception) or type(exception).__name__)

    def _write(self, state: str, step: int, **more: Any) -> None:
        seconds = time.perf_counter() - self.started
        if "images_per_second" in self.run.training.latest:
            more["images_per_second"] = self.run.training.latest["images_per_second"]
        self.folder.write_record(
            state=state, step=step, steps=self.run.size.steps, wall_seconds=round(self.earlier + seconds, 1), **more
        )
