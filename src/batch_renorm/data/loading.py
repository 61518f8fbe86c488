"""How many loader processes a rank has: as many as its cores and the machine's shared memory allow."""

import os
import shutil
from dataclasses import dataclass
from typing import Literal

from batch_renorm.data.loaders import Source
from batch_renorm.errors import UserError

MOST_PROCESSES = 16  # of a rank: each prepares some 500 images a second, and no GPU is known to need 8,000
PREFETCHED = 2  # passes that a loader process prepares in advance; torch's default
SHARED_MEMORY = "/dev/shm"


@dataclass(frozen=True)
class Loading:
    """Loader processes of a rank, and why so many."""

    processes: int
    because: str


def loading_of(
    source: Source, asked: int | Literal["auto"], images: int, cores: float, ranks: int, gpu: bool
) -> Loading:
    """The loader processes of a rank, by its cores and the shared memory in which they pass images on.

    Args:
        images: of the largest pass and of an evaluation's batch.
        cores: of this rank.
        ranks: on this machine.

    Raises:
        UserError: far more were asked for than there are cores, or than shared memory holds: they would die in a run.
    """
    if asked == "auto" and not source.needs_loader_processes:
        return Loading(0, "the device makes the images")
    free = shutil.disk_usage(SHARED_MEMORY).free if os.path.isdir(SHARED_MEMORY) else 1 << 60
    fit = int(0.8 * free / (source.image_bytes * images * PREFETCHED * ranks))
    full = f"{SHARED_MEMORY} holds the images of {fit} loader processes a rank: give it more (docker run --shm-size)"
    if asked == "auto":
        least, most = (1, MOST_PROCESSES) if gpu else (0, 1)  # on a CPU the network uses all cores
        processes = min(most, max(least, int(cores) - 1))
        return Loading(fit, full) if fit < processes else Loading(processes, f"{cores:.3g} cores of this rank")
    if asked > max(MOST_PROCESSES, 8 * cores):
        raise UserError(f"trainer.loader_processes={asked} for the {cores:.3g} cores of a rank: say auto, or fewer")
    if asked > fit:
        raise UserError(f"{full}, or lower trainer.loader_processes={asked} or trainer.workers_per_pass")
    return Loading(asked, "trainer.loader_processes")
