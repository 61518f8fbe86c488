"""One run, from a composed config to a finished run folder. What train.py calls."""

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from batch_renorm.data.loaders import Division
from batch_renorm.training import checkpoints, curve
from batch_renorm.training.allocator import keep_freed_memory
from batch_renorm.training.build import Config, Machine, build, construct
from batch_renorm.training.errors import DiskFullError, Stopped
from batch_renorm.training.fitting import fit
from batch_renorm.training.folder import Folder, claimed, prepare, with_places
from batch_renorm.training.launch import Place, find_place, share, take_place, together, uses_gpu
from batch_renorm.training.result import FINISHED, summary
from batch_renorm.training.screen import say, tell_result
from batch_renorm.training.signals import Stop


@dataclass(frozen=True)
class Start:
    """What rank 0 has found in the run folder, and what all ranks therefore do."""

    checkpoint: Path | None = None
    finished: bool = False
    refused: str | None = None
    remarks: tuple[str, ...] = ()


def train(config: DictConfig | Config) -> dict[str, Any]:
    """Start, resume or report the run of a config; returns its record (run.json).

    Raises:
        ValueError: a bad option, an unwritable folder, a folder with another run; one clear line.
        NotFiniteError: the loss or gradient is not finite; the last checkpoint is kept.
        DiskFullError: a file of the run cannot be written; the last checkpoint is kept.
        Stopped: a signal asked for it; the last checkpoint is that of the step it stopped after.
    """
    settings: Config = OmegaConf.to_container(config, resolve=True) if isinstance(config, DictConfig) else config  # type: ignore[assignment]
    settings = with_places(settings)
    stop = Stop()
    with stop.listening():
        return start_or_resume(settings, stop)


def start_or_resume(settings: Config, stop: Stop) -> dict[str, Any]:
    hush()
    machine: Machine = construct(Machine, settings, "trainer")
    place = find_place(machine.accelerator, machine.devices, machine.num_nodes)
    take_place(place)
    stop.talkative = place.rank == 0
    if not uses_gpu(machine.accelerator):
        keep_freed_memory()
    if machine.threads:
        torch.set_num_threads(machine.threads)
    science = {name: value for name, value in settings.items() if name != "fresh"}
    run = build(science)
    run.training.stop = stop
    Division(run.size.workers, place.rank, place.ranks, None)  # raises if there are too many ranks
    folder = Folder(Path(settings["folder"]))
    with ExitStack() as claim:  # the folder is this process's until the run ends
        start = decide(folder, science, settings["fresh"], claim) if place.rank == 0 else Start()
        if place.launcher == "python" and (start.refused or start.finished):
            return tell(start, folder, place)
        with together(place, settings, uses_gpu(machine.accelerator)):
            start = share(start, place)
            if start.refused or start.finished:
                return tell(start, folder, place)
            for remark in start.remarks:
                if place.rank == 0:
                    say(remark)
            with large_enough(settings, place):
                reached = fit(run, folder, start.checkpoint, place)
    if stop.decided and reached < run.size.steps:
        stopped = Stopped(stop.decided, reached, run.size.steps)
        if place.rank == 0:
            say(str(stopped))
        raise stopped
    if place.rank == 0:
        tell_result(summary(folder))
    return folder.record()


@contextmanager
def large_enough(settings: Config, place: Place) -> Iterator[None]:
    """Around the first step: say so where images are smaller than what a convolution or pooling looks at.

    Raises:
        ValueError: they are.
    """
    try:
        yield
    except RuntimeError as error:
        if not re.search("Kernel size can't be greater than actual input size|Output size is too small", str(error)):
            raise
        if place.rank:
            raise SystemExit(2) from error  # rank 0 says why
        network = settings["model"].get("name") or settings["model"]["_target_"].rpartition(".")[2]
        raise ValueError(
            f"data.size={settings['data']['size']} is too small for {network} to train: its feature maps become "
            "smaller than a kernel; take larger images"
        ) from error


def decide(folder: Folder, config: Config, fresh: bool, claim: ExitStack) -> Start:
    """Rank 0's part: claim the folder, make it ready and choose where to begin, for all ranks."""
    try:
        claim.enter_context(claimed(folder, fresh))
        found = prepare(folder, config)
        if folder.record().get("state") == "finished":
            return Start(finished=True)
        checkpoint, damaged = checkpoints.choose(folder, config)
        curve.rewind(folder.curve, checkpoints.step_of(checkpoint) if checkpoint else 0)
    except (ValueError, OSError, DiskFullError) as error:  # the other ranks must hear of it, not wait
        return Start(refused=str(error))
    fallen = [f"{path} is damaged: falling back to {checkpoint or 'the start'}" for path in damaged]
    return Start(checkpoint, remarks=tuple(found + fallen))


def tell(start: Start, folder: Folder, place: Place) -> dict[str, Any]:
    """The end of a run that does not begin."""
    if start.refused:
        if place.rank:
            raise SystemExit(2)  # rank 0 says why
        raise ValueError(start.refused)
    if place.rank == 0:
        tell_result(f"{FINISHED}\n{summary(folder)}")
    return folder.record()


def hush() -> None:
    """Silence Lightning's tips and warnings that do not apply: what a run says is said by `say`."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for text in (
        ".*does not have many workers.*",
        ".*GPU available but not used.*",
        ".*module.s. in eval mode.*",
        ".*treespec.*",
        ".*srun.*command is available.*",
        ".*broadcast_buffers.*is deprecated.*",  # its successor does not do the same, as it says
    ):
        warnings.filterwarnings("ignore", text)
