"""curve.csv: a run's measurements, in rows of step, metric, value."""

from pathlib import Path

HEADER = ["step", "metric", "value"]
BY_THE_CLOCK = ("images_per_second", "seconds_")
"""Prefixes of metrics that measure time: only these differ when the same run is repeated."""


def read_rows(path: Path) -> list[tuple[int, str, float]]:
    """The whole rows (step, metric, value) in the file's order; empty if there is no file."""
    rows = (parsed(line) for line in lines_of(path)[1:]) if path.exists() else ()
    return [row for row in rows if row is not None]


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)


def parsed(line: str) -> tuple[int, str, float] | None:
    """The row in a line; None if it is incomplete or damaged."""
    cells = line.split(",")
    if not line.endswith("\n") or len(cells) != 3:
        return None
    try:
        return int(cells[0]), cells[1], float(cells[2])
    except ValueError:
        return None
