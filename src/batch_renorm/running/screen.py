"""Text for the user: progress and remarks on standard error, results on standard output, wrapped between words."""

import shutil
import sys
import textwrap

WIDEST = 100  # characters of a line, even on a wider terminal


def width() -> int:
    """Characters of a line: the terminal's width or COLUMNS, at most 100; 80 in a file."""
    return min(WIDEST, shutil.get_terminal_size((80, 24)).columns)


def wrapped(text: str, hanging: str = "    ") -> str:
    """Wrap lines between words; a word that is too long, such as a path, stays whole.

    Args:
        hanging: extra indentation of continuation lines.
    """
    return "\n".join(
        textwrap.fill(
            line,
            width(),
            subsequent_indent=line[: len(line) - len(line.lstrip())] + hanging,
            break_long_words=False,
            break_on_hyphens=False,
        )
        for line in text.splitlines()
    )


def say(text: str) -> None:
    """Print a remark on standard error."""
    print(wrapped(text), file=sys.stderr, flush=True)


def tell_result(text: str) -> None:
    """Print a result on standard output, after all earlier remarks."""
    sys.stderr.flush()
    print(wrapped(text), flush=True)


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
