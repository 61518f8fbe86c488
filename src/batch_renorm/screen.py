"""Text for the user: remarks on standard error, results on standard output, wrapped between words."""

import os
import shutil
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

WIDEST = 100  # characters of a line, even on a wider terminal
SILENCE = 10.0  # seconds of waiting after which it is said what is waited for


def wrapped(text: str, hanging: str = "    ") -> str:
    """Wrap lines at the terminal's width or COLUMNS, at most 100, and 80 in a file.

    Lines break between words; a word that is too long, such as a path, stays in one piece.

    Args:
        hanging: extra indentation of continuation lines.
    """
    wrapper = textwrap.TextWrapper(break_long_words=False, break_on_hyphens=False)
    wrapper.width = min(WIDEST, shutil.get_terminal_size((80, 24)).columns)
    lines = []
    for line in text.splitlines():
        wrapper.subsequent_indent = line[: len(line) - len(line.lstrip())] + hanging
        lines.append(wrapper.fill(line))
    return "\n".join(lines)


def print_remark(text: str) -> None:
    """Print a remark on standard error."""
    print_line(wrapped(text))


def print_result(text: str) -> None:
    """Print a result on standard output, after all earlier remarks."""
    print_line(wrapped(text), sys.stdout)


def print_line(text: str, stream: TextIO | None = None, end: str = "\n") -> None:
    """Print on standard error, or another stream. If nobody can read it any more (`| head -1`), the run goes on."""
    stream = stream or sys.stderr
    try:
        if stream is not None:  # closed before the program began
            print(text, file=stream, end=end, flush=True)
    except (OSError, ValueError) as error:
        if isinstance(error, BrokenPipeError):  # so that the rest in its buffer is no error at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def print_from_handler(text: str) -> None:
    """Print in a signal's handler, which may have interrupted print(): that is not reentrant."""
    with suppress(OSError):
        os.write(2, f"\n{text}\n".encode())


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Say after 10 seconds in this block what is waited for."""
    timer = threading.Timer(SILENCE, print_remark, [f"waiting for {what}"])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
