"""Errors that are no bugs. The commands print them in one line; every other exception has a traceback and status 1."""

import errno
import os
import signal
from collections.abc import Collection
from difflib import get_close_matches
from pathlib import Path

TRANSIENT = {
    errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.ECONNRESET, errno.EREMOTEIO,
    errno.ECONNREFUSED, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ENOTCONN,
}  # fmt: skip
"""Errors of files that may pass: a disk, a network or a file server has failed for a moment."""


class UserError(ValueError):
    """A file, a folder or an option is not what it should be: one line that names it and the cure.

    The commands print it as `error: ...` and end with status 2. torch makes a loader process's exception again from its
    whole traceback; only the last line is the message.
    """

    def __init__(self, message: str) -> None:
        super().__init__(last_line(type(self), message))


class TransientReadError(OSError):
    """A read that failed several times for a reason that may pass (EIO, ESTALE, ETIMEDOUT).

    The commands end with status 75, sysexits' "temporary failure: run me again".
    """

    def __init__(self, message: str) -> None:
        super().__init__(last_line(type(self), message))


class NotFiniteError(RuntimeError):
    """The loss or the gradient became NaN or infinite; status 2."""


class DiskFullError(RuntimeError):
    """The disk is too full for a file of the run; status 2."""

    def __init__(self, path: Path) -> None:
        folder = path.parent.parent if path.parent.name == "checkpoints" else path.parent
        super().__init__(
            f"the disk is full: {path} cannot be written.{last_checkpoint(folder)} Make room, and the same command "
            "goes on from there"
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


def last_line(error: type[Exception], message: str) -> str:
    return message.strip().splitlines()[-1].removeprefix(f"{error.__module__}.{error.__qualname__}: ")


def last_checkpoint(folder: Path) -> str:
    """A sentence that names a run folder's last checkpoint; empty if it has none."""
    checkpoints = sorted((folder / "checkpoints").glob("step*.ckpt"))
    return f" The last checkpoint is good: {checkpoints[-1].name}." if checkpoints else ""


def did_you_mean(name: str, known: Collection[str]) -> str:
    """The end of a sentence: names like a misspelt one, or some that are known."""
    if close := get_close_matches(name, known):
        return f"; did you mean {' or '.join(close)}?"
    return f"; there are {', '.join(sorted(known)[:20])}{', ...' * (len(known) > 20)}"
