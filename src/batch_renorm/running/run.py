"""One run, from a composed config to a finished run folder; train.py calls it."""

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from batch_renorm.data.loaders import Division
from batch_renorm.errors import DiskFullError, NotFiniteError, Stopped, UserError, last_checkpoint
from batch_renorm.running import checkpoints, curve_logger
from batch_renorm.running.allocator import keep_freed_memory
from batch_renorm.running.build import Config, build
from batch_renorm.running.fitting import fit
from batch_renorm.running.folder import Folder, check_data, claimed, prepare_folder, with_places
from batch_renorm.running.launch import (
    World,
    all_ranks,
    device_of,
    find_world,
    from_rank_0,
    tell_lightning_the_rank,
    uses_gpu,
)
from batch_renorm.running.result import FINISHED, summary
from batch_renorm.running.schema import read
from batch_renorm.running.screen import say, tell_result
from batch_renorm.running.signals import Stop
from batch_renorm.training.module import Training


@dataclass(frozen=True)
class StartingPoint:
    """What rank 0 found in the run folder; all ranks act on it."""

    checkpoint: Path | None = None
    finished: bool = False
    refused: str | None = None
    remarks: tuple[str, ...] = ()


def train(config: DictConfig | Config) -> dict[str, Any]:
    """Start, resume or report the run of a config; return its record (run.json).

    Raises:
        UserError: a bad option, an unwritable folder, a folder with another run; one clear line.
        NotFiniteError: the loss or gradient is not finite; the last checkpoint is kept.
        DiskFullError: a file of the run cannot be written; the last checkpoint is kept.
        Stopped: a signal stopped the run; the last checkpoint is from the last step.
    """
    settings: Config = OmegaConf.to_container(config, resolve=True) if isinstance(config, DictConfig) else config  # type: ignore[assignment]
    settings = with_places(settings)
    stop = Stop()
    with stop.listening():
        return start_or_resume(settings, stop)


def start_or_resume(settings: Config, stop: Stop) -> dict[str, Any]:
    silence_lightning()
    machine = read(settings).trainer
    world = find_world(machine.accelerator, machine.devices, machine.num_nodes)
    tell_lightning_the_rank(world)
    stop.talkative = world.rank == 0
    if not uses_gpu(machine.accelerator):
        keep_freed_memory()
    if machine.threads:
        torch.set_num_threads(machine.threads)
    science = {name: value for name, value in settings.items() if name != "fresh"}
    folder = Folder(Path(settings["folder"]))
    earlier = None if settings["fresh"] else recorded_arithmetic(folder)
    run = build(science, stop, device_of(world, machine.accelerator), earlier)
    Division(run.size.workers, world.rank, world.ranks, None)  # raises if there are too many ranks
    with ExitStack() as claim:  # this process holds the folder until the run ends
        start = StartingPoint() if world.rank else choose_start(folder, science, run.training, settings["fresh"], claim)
        if world.launcher == "python" and (start.refused or start.finished):
            return report_without_training(start, folder, world)
        with all_ranks(world, settings, uses_gpu(machine.accelerator)):
            start = from_rank_0(start, world)
            if start.refused or start.finished:
                return report_without_training(start, folder, world)
            for remark in (*run.source.remarks, *start.remarks):
                if world.rank == 0:
                    say(remark)
            with explaining(settings, world):
                reached = fit(run, folder, start.checkpoint, world)
    if stop.decided and reached < run.size.steps:
        stopped = Stopped(stop.decided, reached, run.size.steps)
        if world.rank == 0:
            say(str(stopped))
        raise stopped
    if world.rank == 0:
        tell_result(summary(folder))
    return folder.record()


def recorded_arithmetic(folder: Folder) -> dict[str, Any] | None:
    """The arithmetic of the run in a folder; None for a new run, or if run.json is damaged and will be made again."""
    with suppress(ValueError, OSError):
        return folder.record().get("arithmetic")
    return None


@contextmanager
def explaining(settings: Config, world: World) -> Iterator[None]:
    """Explain a loss that is not finite, and the first step's error if images are too small for a convolution.

    Raises:
        UserError: the images are too small.
        NotFiniteError: with the checkpoint from which another command may go on.
    """
    try:
        yield
    except NotFiniteError as error:
        raise NotFiniteError(f"{error}.{last_checkpoint(Path(settings['folder']))}") from error
    except RuntimeError as error:
        if not re.search("Kernel size can't be greater than actual input size|Output size is too small", str(error)):
            raise
        if world.rank:
            raise SystemExit(2) from error  # rank 0 says why
        network = settings["model"].get("name") or settings["model"]["_target_"].rpartition(".")[2]
        raise UserError(
            f"data.size={settings['data']['size']} is too small for {network} to train: its feature maps become "
            "smaller than a kernel; take larger images"
        ) from error


def choose_start(folder: Folder, config: Config, training: Training, fresh: bool, claim: ExitStack) -> StartingPoint:
    """On rank 0: claim and prepare the folder, and choose the checkpoint for all ranks."""
    try:
        claim.enter_context(claimed(folder, fresh))
        found = prepare_folder(folder, config)
        check_data(folder, {split: training.source.labels(split) for split in ("train", "val")})
        if folder.record().get("state") == "finished":
            return StartingPoint(finished=True)
        checkpoint, damaged = checkpoints.choose_checkpoint(folder, config, training)
        curve_logger.rewind(folder.curve, checkpoints.step_of(checkpoint) if checkpoint else 0)
    except (ValueError, OSError, DiskFullError) as error:  # tell the other ranks, which would wait for ever
        return StartingPoint(refused=str(error))
    fallen = [f"{path} is damaged: falling back to {checkpoint or 'the start'}" for path in damaged]
    return StartingPoint(checkpoint, remarks=tuple(found + fallen))


def report_without_training(start: StartingPoint, folder: Folder, world: World) -> dict[str, Any]:
    """Report a finished run, or raise the reason why the run cannot start."""
    if start.refused:
        if world.rank:
            raise SystemExit(2)  # rank 0 says why
        raise UserError(start.refused)
    if world.rank == 0:
        tell_result(f"{FINISHED}\n{summary(folder)}")
    return folder.record()


def silence_lightning() -> None:
    """Silence Lightning's tips and the warnings that do not apply; a run prints its remarks with `say`."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for text in (
        ".*does not have many workers.*",
        ".*GPU available but not used.*",
        ".*module.s. in eval mode.*",
        ".*treespec.*",
        ".*srun.*command is available.*",
        ".*broadcast_buffers.*is deprecated.*",  # the suggested replacement does not do the same
    ):
        warnings.filterwarnings("ignore", text)
