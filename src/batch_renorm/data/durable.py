"""Files that are written whole or not at all, also when the machine loses its power, and folders with one writer.

A file gets its content under a temporary name of its own, is made durable, and is renamed. A folder that is
written to has a lock, which is the kernel's: it goes with the process that holds it, however that ends.
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

LOCK = ".lock"
GRACE = 2.0  # seconds that a writer which has just been killed may take to be gone
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary path for the content of `path`, which gets it durably when the block ends, or not at all."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}.part")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):  # the cause is what counts
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable; some file systems cannot, and need not."""
    handle = os.open(folder, os.O_RDONLY)
    with suppress(OSError):
        os.fsync(handle)
    os.close(handle)


@contextmanager
def only_writer(folder: Path, what: str, cure: str) -> Iterator[None]:
    """Be the one process that writes in a folder, which is there, until the block ends.

    A file system without locks (some clusters' Lustre) is told of, and used without.

    Args:
        what: the folder is, for people.
        cure: what a person can do while another process has it.

    Raises:
        ValueError: another process has it; names it.
    """
    path, own = folder / LOCK, (0, 0)

    def sign(descriptor: int) -> None:
        nonlocal own
        own = identity(os.fstat(descriptor))
        note = {"host": socket.gethostname(), "process": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        with suppress(OSError):  # of a full disk, which somebody else will name
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(note).encode(), 0)

    # thread_local: a lock that only the acquiring thread could release would survive it
    lock = FileLock(path, timeout=GRACE, thread_local=False, fallback_to_soft=False, on_acquired=sign)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(f"{what} {folder} is in use {holder(path)}; {cure}") from None
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
                path.unlink()  # whoever waits for it notices, and makes a new one
        lock.release()


def identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def holder(lock: Path) -> str:
    """Who holds a lock, for people."""
    try:
        note = json.loads(lock.read_text())
        return f"by process {note['process']} on {note['host']} since {note['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "by another process"


def in_use_below(folder: Path) -> str | None:
    """What is in use in folders below one, and by whom; None where nothing is."""
    for lock in folder.glob(f"*/**/{LOCK}"):
        probe = FileLock(lock, timeout=0, thread_local=False, fallback_to_soft=False)
        try:
            probe.acquire()
            probe.release()
        except Timeout:
            return f"{lock.parent} is in use {holder(lock)}"
        except OSError:
            continue
    return None
