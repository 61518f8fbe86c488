"""Training from a checkpoint to the last step: Lightning's trainer, and what happens after a step."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.profilers import AdvancedProfiler, Profiler, PyTorchProfiler, SimpleProfiler
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from batch_renorm.data.loaders import Pass, SentAhead, training_loader
from batch_renorm.data.loading import loading_of
from batch_renorm.errors import DiskFullError
from batch_renorm.records.folder import Folder
from batch_renorm.running import arithmetic, checkpoints
from batch_renorm.running.build import Run
from batch_renorm.running.capacity import Execution, cores, memory_of
from batch_renorm.running.folder import provenance
from batch_renorm.running.launch import device_of
from batch_renorm.running.loggers import CurveLogger, WandbLogger
from batch_renorm.running.progress import Progress, opening
from batch_renorm.running.ranks import ALONE, World, from_rank_0
from batch_renorm.screen import print_line
from batch_renorm.training.distance import activation_distances
from batch_renorm.training.evaluation import ON_MINIBATCHES, evaluate, watched

LONG_EVALUATION = 60.0  # seconds after which it says how far it is
PROFILERS: dict[str | None, Callable[..., Profiler]] = {
    "simple": SimpleProfiler, "advanced": AdvancedProfiler, "torch": PyTorchProfiler,
}  # fmt: skip
"""They write fit-profile* into the run folder when training ends."""


class AfterStep(Callback):
    """Evaluates when due, writes a checkpoint after each evaluation and before a stop, updates run.json, stops.

    `execution` and `facts` are for run.json, `record` is run.json as it was before this start.
    """

    def __init__(
        self, run: Run, folder: Folder, world: World, execution: Execution, facts: dict[str, Any],
        record: dict[str, Any],
    ) -> None:  # fmt: skip
        self.run, self.folder, self.world = run, folder, world
        self.execution, self.facts, self.record = execution, facts, record
        evaluation = replace(run.evaluation, batch_size=execution.memory.evaluation_batch)
        self.measurements = evaluation.measurements(run.source)
        self.as_trained = evaluation.as_trained(run.source)
        self.started = time.perf_counter()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = trainer.global_step
        if self.world.rank == 0:
            print_line(opening(self.run, self.world, self.execution, self.folder.path, step))
        how = asdict(self.execution) | self.facts
        self._write("running", step, reason=None, ranks=self.world.ranks, launcher=self.world.launcher, **how)

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
            trainer.save_checkpoint(self.folder.path / "checkpoints" / f"step{step:08d}.ckpt")
            checkpoints.remove_old(self.folder)
        if due:
            self._write("running", step)
        trainer.should_stop = stopping

    def _evaluate(self, trainer: Trainer, step: int) -> None:
        run, rank, ranks, due = self.run, self.world.rank, self.world.ranks, self.measurements
        model, device = run.training.inference_model(step), run.training.device
        if not run.evaluation.minibatches_due(step, run.size.steps):
            due = {name: due[name] for name in due if name not in ON_MINIBATCHES}
        watch = partial(watched, quiet=LONG_EVALUATION) if rank == 0 else iter
        metrics = evaluate(model, run.source, due, device, self.execution.loading.processes, rank, ranks, watch)
        metrics |= activation_distances(model, run.source, self.as_trained, device, rank, ranks)
        run.training.record(metrics, step)
        run.training.restart_clock(step)
        for logger in trainer.loggers:
            logger.save()  # before the checkpoint: a resumed run expects these rows

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["config"] = self.run.config

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == self.run.size.steps:
            self._write("finished", trainer.global_step)
        elif self.run.stop.decided is not None:
            self._write("stopped", trainer.global_step, reason=self.run.stop.decided.name)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        with suppress(OSError, DiskFullError):  # a full disk may have caused the exception
            self._write("stopped", trainer.global_step, reason=str(exception) or type(exception).__name__)

    @rank_zero_only
    def _write(self, state: str, step: int, **more: Any) -> None:
        """Write state, steps done, time spent and what the result depends on to run.json."""
        seconds = round(self.record["wall_seconds"] + time.perf_counter() - self.started, 1)
        if "images_per_second" in self.run.training.latest:
            more["images_per_second"] = self.run.training.latest["images_per_second"]
        self.folder.write_record(state=state, step=step, steps=self.run.size.steps, wall_seconds=seconds, **more)


def fit(run: Run, folder: Folder, checkpoint: Path | None, world: World = ALONE) -> int:
    """Train from a checkpoint or from the start, until the last step or a stop; return the step reached."""
    record = from_rank_0(folder.record(), world)  # on a shared disk another rank may see an older file
    device = device_of(world, run.machine.accelerator)
    gpu = device.type == "cuda"
    arithmetic.configure_torch(run.arithmetic)
    memory = memory_of(run, world, device, record)
    passes = run.passes(world.rank, world.ranks, memory.workers_per_pass)
    images = memory.workers_per_pass * run.minibatch.size + memory.evaluation_batch
    loading = loading_of(run.source, run.machine.loader_processes, images, cores(world), world.devices, gpu)
    execution = Execution(arithmetic.entries(run.arithmetic, device), memory, loading)
    machine = torch.cuda.get_device_name(device) if gpu else f"cpu, {torch.get_num_threads()} threads"
    facts = provenance(machine) if world.rank == 0 else {}
    step = checkpoints.step_of(checkpoint) if checkpoint else 0
    loggers: list[Logger] = [CurveLogger(folder.curve)]
    if run.logging.wandb is not None and world.rank == 0:
        parameters = sum(parameter.numel() for parameter in run.training.model.parameters())
        told = {"ranks": world.ranks, "precision": run.arithmetic.precision, "parameters": parameters, **facts}
        loggers.append(WandbLogger(run, run.logging.wandb, folder, step, told))
    profiler = PROFILERS.get(run.machine.profile)
    trainer = Trainer(
        accelerator=device.type,  # with "auto" Lightning would use a Mac's GPU while everything else is on the CPU
        devices=world.devices,
        num_nodes=world.nodes,
        # mu and sigma are equal on every rank by construction: nothing to broadcast
        strategy=DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True) if world.ranks > 1 else "auto",
        max_steps=run.size.steps,
        logger=loggers,
        callbacks=[AfterStep(run, folder, world, execution, facts, record), Progress(run, world.rank == 0)],
        # launch.py has set torchrun's variables: Lightning need not guess the launcher
        plugins=[checkpoints.AtomicCheckpointIO(), LightningEnvironment()],
        profiler=profiler and profiler(dirpath=folder.path, filename="profile"),
        enable_checkpointing=False,  # checkpoints.py says why
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    disable_lightnings_signal_handling(trainer)
    loader = training_loader(passes, step, run.size.steps, loading.processes, pin_memory=gpu)
    data = SentAhead(loader, device) if gpu else loader
    trainer.fit(run.training, data, ckpt_path=checkpoint, weights_only=True)
    return trainer.global_step


def disable_lightnings_signal_handling(trainer: Trainer) -> None:
    """Leave signals to `Stop`.

    Lightning's handler starts a collective within a step, and every pass waits for one. Neither can be switched off.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
