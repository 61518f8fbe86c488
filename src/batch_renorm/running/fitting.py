"""Training from a checkpoint to the last step: Lightning's trainer and its arguments."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningDataModule, Trainer
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.profilers import AdvancedProfiler, Profiler, PyTorchProfiler, SimpleProfiler
from pytorch_lightning.strategies import DDPStrategy
from torch.utils.data import DataLoader

from batch_renorm.data.kept import AT_ONCE, KeptImages
from batch_renorm.data.loaders import Pass, SentAhead, training_loader
from batch_renorm.running import arithmetic, checkpoints
from batch_renorm.running.after_step import AfterStep, device_name
from batch_renorm.running.build import Run
from batch_renorm.running.curve_logger import CurveLogger
from batch_renorm.running.folder import Folder, provenance
from batch_renorm.running.launch import ALONE, World, device_of, from_rank_0, gather
from batch_renorm.running.loading import loading, room_for_images
from batch_renorm.running.memory import evaluation_batch, workers_per_pass
from batch_renorm.running.progress import Progress
from batch_renorm.running.shared_memory import check_shared_memory
from batch_renorm.running.signals import take_signals_from
from batch_renorm.running.wandb_log import WandbLogger


class Data(LightningDataModule):
    """The rank's passes from the trainer's current step: to resume is to start at another step."""

    def __init__(self, run: Run, workers_per_pass: int, processes: int) -> None:
        super().__init__()
        self.run, self.workers_per_pass, self.processes = run, workers_per_pass, processes

    def train_dataloader(self) -> DataLoader[Pass] | SentAhead:
        trainer, run = self.trainer, self.run
        assert trainer is not None
        passes = run.passes(trainer.global_rank, trainer.world_size, self.workers_per_pass)
        device = trainer.strategy.root_device
        gpu = device.type == "cuda"
        loader = training_loader(passes, trainer.global_step, run.size.steps, self.processes, pin_memory=gpu)
        return SentAhead(loader, device) if gpu else loader

    def transfer_batch_to_device(self, batch: Pass, device: torch.device, dataloader_idx: int) -> Pass:
        """Do nothing: `SentAhead` has started the copy, and the training step waits for it and counts the time."""
        return batch


def fit(run: Run, folder: Folder, checkpoint: Path | None, world: World = ALONE) -> int:
    """Train from a checkpoint or from the start, until the last step or a stop; return the step reached."""
    machine, steps = run.machine, run.size.steps
    before = from_rank_0(folder.record(), world)  # on a shared disk another rank may see an older file
    device = device_of(world, machine.accelerator)
    arithmetic.check_ranks(gather(run.arithmetic, world), world.rank)
    arithmetic.configure_torch(run.arithmetic)
    execution: dict[str, Any] = {"arithmetic": arithmetic.entries(run.arithmetic, device)}
    execution["memory"] = workers_per_pass(run, world, device, before)
    passes = run.passes(world.rank, world.ranks, execution["memory"]["workers_per_pass"]).division.passes
    arithmetic.check_passes(run.arithmetic, passes)
    execution["memory"] |= {"evaluation_batch": evaluation_batch(run, world, device)}
    evaluation = replace(run.evaluation, batch_size=execution["memory"]["evaluation_batch"])
    images = execution["memory"]["workers_per_pass"] * run.minibatch.size + AT_ONCE
    execution["loading"] = loading(run, world, device, images)
    processes = execution["loading"]["processes"]
    check_shared_memory(run.source.image_bytes, images, processes, world.devices)
    kept = KeptImages(run.source, processes, room_for_images(world), pinned=device.type == "cuda")
    trainer = Trainer(
        accelerator=device.type,  # with "auto" Lightning would use a Mac's GPU while everything else is on the CPU
        devices=world.devices,
        num_nodes=world.nodes,
        # mu and sigma are equal on every rank by construction: nothing to broadcast
        strategy=DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True) if world.ranks > 1 else "auto",
        max_steps=steps,
        logger=loggers(run, folder, checkpoint, world, facts(run, world, device, execution)),
        callbacks=[
            AfterStep(run, folder, world, evaluation, kept, execution),
            Progress(run),
        ],
        # launch.py has set torchrun's variables: Lightning need not guess the launcher
        plugins=[checkpoints.AtomicCheckpointIO(), LightningEnvironment()],
        profiler=profiler(run, folder),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    take_signals_from(trainer)
    data = Data(run, execution["memory"]["workers_per_pass"], processes)
    try:
        trainer.fit(run.training, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    finally:
        kept.close()
    return trainer.global_step


def facts(run: Run, world: World, device: torch.device, execution: dict[str, Any]) -> dict[str, Any]:
    """Facts for W&B's table of runs, in addition to the config."""
    return {
        "ranks": world.ranks,
        "precision": execution["arithmetic"]["precision"],
        "parameters": sum(parameter.numel() for parameter in run.training.model.parameters()),
        **provenance(device_name(device)),
    }


def profiler(run: Run, folder: Folder) -> Profiler | None:
    """Lightning's profiler of configs/trainer; it writes fit-profile* into the run folder when training ends."""
    where: dict[str, Any] = {"dirpath": folder.path, "filename": "profile"}
    match run.machine.profile:
        case "simple":
            return SimpleProfiler(**where)
        case "advanced":
            return AdvancedProfiler(**where)
        case "torch":  # three steps, after skipping the first ones
            return PyTorchProfiler(**where, export_to_chrome=True)
    return None


def loggers(run: Run, folder: Folder, checkpoint: Path | None, world: World, facts: dict[str, Any]) -> list[Logger]:
    """curve.csv always; W&B as in configs/logger, the same W&B run after a resume."""
    result: list[Logger] = [CurveLogger(folder.curve)]
    if run.logging.wandb is not None and world.rank == 0:
        step = checkpoints.step_of(checkpoint) if checkpoint else 0
        result.append(WandbLogger(run, run.logging.wandb, folder.path, folder.record()["id"], step, facts))
    return result
