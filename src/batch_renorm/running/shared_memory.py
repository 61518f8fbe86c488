"""Shared memory for loader processes: they pass images on in it, and containers often have little of it."""

import os
import shutil

from batch_renorm.errors import UserError

SHARED_MEMORY = "/dev/shm"
PREFETCHED = 2
"""Passes that a loader process prepares in advance; torch's default."""


def shared_memory_fits(image_bytes: int, images: int, ranks: int) -> int | None:
    """The most loader processes per rank that fit in four fifths of the free shared memory; None: no limit."""
    if not os.path.isdir(SHARED_MEMORY):
        return None
    free = shutil.disk_usage(SHARED_MEMORY).free
    return int(0.8 * free / (image_bytes * images * PREFETCHED * ranks))


def check_shared_memory(image_bytes: int, images: int, processes: int, ranks: int) -> None:
    """Check that the images of all loader processes fit.

    Args:
        image_bytes: bytes of one image in shared memory.
        images: images of the largest pass plus those of an evaluation's request: both may be there at the same time.
        processes: loader processes of a rank.
        ranks: ranks on this machine.

    Raises:
        UserError: too little memory; otherwise a loader process would die in the middle of a run.
    """
    needed = image_bytes * images * PREFETCHED * processes * ranks
    if not needed or not os.path.isdir(SHARED_MEMORY):
        return
    free = shutil.disk_usage(SHARED_MEMORY).free
    if needed > free:
        raise UserError(
            f"{processes} loader processes of {ranks} ranks need {needed / 1e9:.1f} GB of {SHARED_MEMORY}, "
            f"{free / 1e9:.1f} GB are free: give it more (docker run --shm-size={needed // 10**9 + 1}g), or lower "
            "trainer.loader_processes or trainer.workers_per_pass"
        )
