"""Errors that are about the run, not about the program."""

import os
import signal


class NotFiniteError(RuntimeError):
    """The loss or the gradient became NaN or infinite."""


class Stopped(RuntimeError):
    """The run was asked to stop and has written a checkpoint; `status` is the program's exit status.

    130 after Ctrl-C, as a shell has it; otherwise 75, sysexits' "temporary failure: run me again".
    """

    def __init__(self, cause: signal.Signals, step: int, steps: int) -> None:
        super().__init__(
            f"stopped by {cause.name} after step {step:,} of {steps:,}; the same command goes on from there"
        )
        self.status = 130 if cause is signal.SIGINT else os.EX_TEMPFAIL
