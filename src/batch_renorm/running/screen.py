"""Text for the user: remarks on standard error, results on standard output, wrapped between words."""

import os
import shutil
import sys
import textwrap
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from batch_renorm.errors import UserError
from batch_renorm.records import curve
from batch_renorm.running.folder import Folder

WIDEST = 100  # characters of a line, even on a wider terminal
SILENCE = 10.0  # seconds of waiting after which it is said what is waited for
OTHERS = {
    "val_top5": "top-5", "train_top1": "on training images", "val_top1_batch_statistics": "with batch statistics",
}  # fmt: skip


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


def duration(seconds: float) -> str:
    """A duration in words: 40 s, 4 min, 2 h 05 min, 3 days 4 h."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    days = f"{hours // 24} day{'s' * (hours >= 48)} {hours % 24} h"
    return f"{hours} h {minutes:02} min" if hours < 24 else days


def final_accuracy(path: Path) -> float | None:
    """The final val_top1 of a run folder, percent; None if it has none."""
    values = [value for _, metric, value in curve.read_rows(Folder(path.expanduser()).curve) if metric == "val_top1"]
    return values[-1] if values else None


def summary(folder: Folder) -> str:
    """Final and best accuracy of a finished run, the place of its files, and the command that draws them.

    Raises:
        UserError: the curve is missing or has no accuracy.
    """
    rows, record = curve.read_rows(folder.curve), folder.record()
    final = {metric: value for _, metric, value in rows}
    points = [(step, value) for step, metric, value in rows if metric == "val_top1"]
    if not points:
        raise UserError(f"{folder.path} is a finished run, but {folder.curve} has no val_top1; fresh=true repeats it")
    step, best = max(points, key=lambda point: point[1])
    others = ", ".join(f"{name} {final[metric]:.1f}%" for metric, name in OTHERS.items() if metric in final)
    lines = [
        f"validation top-1 {final['val_top1']:.1f}% at the end, {best:.1f}% at best (step {step:,})",
        others,
        waited(final),
        f"{record.get('wall_seconds', 0) / 60:.1f} minutes; curve, config, checkpoints: {folder.path}",
        "figures and table: python scripts/report.py",
    ]
    return "\n  ".join(filter(None, lines))


def waited(final: Mapping[str, float]) -> str:
    """How much of a step waits for images, from the last values of the metrics; empty without them."""
    if "seconds_wait" not in final:
        return ""
    wait, step = final["seconds_wait"], final["seconds_step"]
    return f"a step takes {wait + step:.3g} s, of which {wait / (wait + step):.0%} waits for images"
