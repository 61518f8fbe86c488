"""curve.csv: what a run measured, in rows of step, metric, value."""

from pathlib import Path

HEADER = ["step", "metric", "value"]
BY_THE_CLOCK = ("images_per_second", "seconds_")
"""How metrics begin whose values are measured times: the only ones that the same run gives differently."""


def read_rows(path: Path) -> list[tuple[int, str, float]]:
    """The whole rows (step, metric, value) in the file's order; none of a file that is not there."""
    rows = (parsed(line) for line in lines_of(path)[1:]) if path.exists() else ()
    return [row for row in rows if row is not None]


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)


def parsed(line: str) -> tuple[int, str, float] | None:
    """A whole row; None for a torn or damaged one."""
    cells = line.split(",")
    if not line.endswith("\n") or len(cells) != 3:
        return None
    try:
        return int(cells[0]), cells[1], float(cells[2])
    except ValueError:
        return None
