"""What a person reads: progress and remarks on standard error, results on standard output, whole words in a line."""

import shutil
import sys
import textwrap

WIDEST = 100  # characters of a line, where a terminal has more


def width() -> int:
    """Characters of a line: the terminal's, or what COLUMNS says, at most 100; 80 in a file."""
    return min(WIDEST, shutil.get_terminal_size((80, 24)).columns)


def wrapped(text: str, hanging: str = "    ") -> str:
    """Lines that fit, broken between words; of a word that is too long, a path, nothing is broken.

    Args:
        hanging: before the lines that a long line goes on in, after its own indentation.
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
    """A remark, on standard error."""
    print(wrapped(text), file=sys.stderr, flush=True)


def tell_result(text: str) -> None:
    """A result, on standard output, after what was said before it."""
    sys.stderr.flush()
    print(wrapped(text), flush=True)


def duration(seconds: float) -> str:
    """As a person says it: 40 s, 4 min, 2 h 05 min, 3 days 4 h."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    days = f"{hours // 24} day{'s' * (hours >= 48)} {hours % 24} h"
    return f"{hours} h {minutes:02} min" if hours < 24 else days
