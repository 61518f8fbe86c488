"""Files that are written whole or not at all, even if the machine loses power, and folders with one writer.

A file is written under a unique temporary name, made durable, and renamed. A folder with a writer has a
kernel lock, which disappears when the process that holds it ends for any reason.
"""

import errno
import json
import os
import socket
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from batch_renorm.errors import DiskFullError, UserError

LOCK = ".lock"
GRACE = 2.0  # seconds to wait for a killed writer to disappear
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Raise DiskFullError if the disk or the quota has no room for the file that is written in this block."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(path) from error
        raise


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary path to write to; it durably becomes `path` when the block ends without an error."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}.part")
    try:
        with room_for(path):
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
    except BaseException:
        with suppress(OSError):  # report the first error, not this one
            temporary.unlink(missing_ok=True)
        raise
    handle = os.open(path.parent, os.O_RDONLY)
    with suppress(OSError):  # some file systems cannot make names durable, and need not
        os.fsync(handle)
    os.close(handle)


def write_text(path: Path, text: str) -> None:
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def only_writer(folder: Path, what: str, cure: str) -> Iterator[None]:
    """Be the only process that writes to an existing folder until the block ends.

    On a file system without locks (Lustre on some clusters) it prints a warning and goes on without a lock.

    Args:
        what: what to call the folder in messages.
        cure: what the user can do while another process holds the folder.

    Raises:
        UserError: another process holds the folder; the message names it.
    """
    path, own = folder / LOCK, (0, 0)

    def sign(descriptor: int) -> None:
        nonlocal own
        own = identity(os.fstat(descriptor))
        note = {"host": socket.gethostname(), "process": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        with suppress(OSError):  # a full disk is reported elsewhere
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(note).encode(), 0)

    # thread_local=False: otherwise only the acquiring thread could release the lock
    lock = FileLock(path, timeout=GRACE, thread_local=False, fallback_to_soft=False, on_acquired=sign)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"{what} {folder} is in use {holder(path)}; {cure}") from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        print(f"{folder} is on a file system without locks: see that nothing else writes there", file=sys.stderr)
        yield
        return
    try:
        yield
    finally:
        with suppress(OSError):  # moved away, or gone with its folder
            if identity(path.stat()) == own:
                path.unlink()  # a waiting process notices this and makes a new lock
        lock.release()


def identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def holder(lock: Path) -> str:
    """Who holds a lock, for messages."""
    try:
        note = json.loads(lock.read_text())
        return f"by process {note['process']} on {note['host']} since {note['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "by another process"
