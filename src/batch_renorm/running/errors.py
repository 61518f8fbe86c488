"""Errors of a run that are not bugs of the program."""

import os
import signal
from pathlib import Path


class DiskFullError(RuntimeError):
    """The disk is too full for a file of the run."""

    def __init__(self, path: Path, missing: int) -> None:
        super().__init__(
            f"the disk is full: {path} needs {missing:,} bytes more. The last checkpoint is good: make room, and the "
            "same command goes on from there"
        )


class Stopped(RuntimeError):
    """A signal stopped the run, which has written a checkpoint; `status` is the program's exit status.

    130 after Ctrl-C, as in a shell; otherwise 75, sysexits' "temporary failure: run me again".
    """

    def __init__(self, cause: signal.Signals, step: int, steps: int) -> None:
        super().__init__(
            f"stopped by {cause.name} after step {step:,} of {steps:,}; the same command goes on from there"
        )
        self.status = 130 if cause is signal.SIGINT else os.EX_TEMPFAIL
