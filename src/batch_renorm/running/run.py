"""One run, from a composed config to a finished run folder; train.py calls it."""

import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.utilities import disable_possible_user_warnings
from lightning_fabric.utilities import rank_zero as fabric_rank_zero
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities import rank_zero

from batch_renorm.data.loaders import Division
from batch_renorm.errors import NotFiniteError, Stopped, UserError, last_checkpoint
from batch_renorm.records.curve import rewind
from batch_renorm.records.folder import Folder
from batch_renorm.records.naming import model_of
from batch_renorm.running import checkpoints
from batch_renorm.running.build import Run, build
from batch_renorm.running.capacity import keep_freed_memory
from batch_renorm.running.cli import explained
from batch_renorm.running.fitting import fit
from batch_renorm.running.folder import check_data, claimed, prepare_folder, with_places
from batch_renorm.running.launch import connected, device_of, find_world, start_ranks, uses_gpu
from batch_renorm.running.progress import summary
from batch_renorm.running.ranks import Stop, World, on_rank_0, together
from batch_renorm.running.schema import Config, Machine, read
from batch_renorm.screen import print_remark, print_result


def train(config: DictConfig | Config, world: World | None = None) -> None:
    """Start, resume or report the run of a config.

    `world` is this process's place, if it is a rank that another process has started.

    Raises:
        UserError, NotFiniteError, DiskFullError, Stopped: see `errors`; the last checkpoint is kept.
    """
    settings: Config = OmegaConf.to_container(config, resolve=True) if isinstance(config, DictConfig) else config  # type: ignore[assignment]
    settings = with_places(settings)
    options = read(settings)
    machine = options.trainer
    if (machine.threads or 1) > 4 * (cores := os.cpu_count() or 1):
        raise UserError(f"trainer.threads={machine.threads} for {cores} cores: say null, or fewer")
    if world is None:
        world = find_world(machine.accelerator, machine.devices, machine.num_nodes)
        Division(options.size.workers, world.rank, world.ranks, None)  # raises if there are too many ranks
        if world.launcher == "python" and world.ranks > 1:
            return start_ranks(world, train_as_rank, settings)
    stop = Stop(talkative=world.rank == 0)
    with stop.listening(), ExitStack() as until_the_end, explaining(settings, world):
        start_or_resume(settings, machine, world, stop, until_the_end)


def train_as_rank(settings: Config, world: World) -> None:
    """The program of a rank that `start_ranks` starts: rank 0's exit status says that a signal stopped the run."""
    with explained(), suppress(Stopped) if world.rank else nullcontext():
        train(settings, world)


def start_or_resume(settings: Config, machine: Machine, world: World, stop: Stop, until_the_end: ExitStack) -> None:
    gpu = uses_gpu(machine.accelerator)
    prepare_process(machine, world)
    until_the_end.enter_context(connected(world, gpu))
    fresh, config = settings["fresh"], {name: value for name, value in settings.items() if name != "fresh"}
    folder = Folder(Path(settings["folder"]))

    def claim() -> dict[str, Any] | None:
        until_the_end.callback(remove_if_empty, folder.path)  # of a start that fails before it writes anything
        until_the_end.enter_context(claimed(folder, fresh))
        return folder.record().get("arithmetic")

    # before images are searched and a network is built; but an earlier run moves aside only for a config without errors
    earlier = None if fresh else on_rank_0(claim, world)
    run = together(lambda: build(config, stop, device_of(world, machine.accelerator), earlier), world)
    if fresh:
        on_rank_0(claim, world)
    finished, checkpoint = on_rank_0(lambda: choose_start(folder, config, run), world)
    if not finished:
        reached = fit(run, folder, checkpoint, world)
        if stop.decided and reached < run.size.steps:
            stopped = Stopped(stop.decided, reached, run.size.steps)
            if world.rank == 0:
                print_remark(str(stopped))
            raise stopped
    if world.rank == 0:
        print_result("This run is finished; fresh=true repeats it.\n" * finished + summary(folder))


def remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def choose_start(folder: Folder, config: Config, run: Run) -> tuple[bool, Path | None]:
    """On rank 0, prepare the folder: whether the run is finished, and the checkpoint from which all ranks go on."""
    prepare_folder(folder, config)
    check_data(folder, {split: run.source.labels(split) for split in ("train", "val")})
    if folder.record().get("state") == "finished":
        return True, None
    checkpoint, damaged = checkpoints.choose_checkpoint(folder, config, run.training)
    rewind(folder.curve, checkpoints.step_of(checkpoint) if checkpoint else 0)
    fallbacks = [f"{path} is damaged: falling back to {checkpoint or 'the start'}" for path in damaged]
    for remark in (*run.source.remarks, *fallbacks):
        print_remark(remark)
    return False, checkpoint


@contextmanager
def explaining(settings: Config, world: World) -> Iterator[None]:
    """Say from which checkpoint to go on after a loss that is not finite, and which images are too small."""
    try:
        yield
    except NotFiniteError as error:
        if world.rank:
            raise SystemExit(2) from error  # rank 0 says why
        raise NotFiniteError(f"{error}.{last_checkpoint(Path(settings['folder']))}") from error
    except RuntimeError as error:
        if not re.search("Kernel size can't be greater than actual input size|Output size is too small", str(error)):
            raise
        if world.rank:
            raise SystemExit(2) from error  # rank 0 says why
        raise UserError(
            f"data.size={settings['data']['size']} is too small for {model_of(settings)} to train: its feature maps "
            "become smaller than a kernel; take larger images"
        ) from error


def prepare_process(machine: Machine, world: World) -> None:
    """Set this process's threads, memory and rank, and silence what Lightning says of other runs than these."""
    if not uses_gpu(machine.accelerator):
        keep_freed_memory()
    if machine.threads:
        torch.set_num_threads(machine.threads)
    for module in (rank_zero, fabric_rank_zero):  # before the trainer exists, which sets it, too
        module.rank_zero_only.rank = world.rank
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    disable_possible_user_warnings()
    warnings.filterwarnings("ignore", ".*not finite in.*channels")  # the run ends with a line of its own
    warnings.filterwarnings("ignore", ".*treespec.*")
    warnings.filterwarnings("ignore", ".*broadcast_buffers.*is deprecated.*")  # its replacement does not do the same
