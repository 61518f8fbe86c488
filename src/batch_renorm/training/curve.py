"""curve.csv: what a run measured, in rows of step, metric, value. Everything that reports reads this file."""

from pathlib import Path

from batch_renorm.training.folder import write_atomically

HEADER = ["step", "metric", "value"]
BY_THE_CLOCK = ("images_per_second", "seconds_")
"""How metrics begin whose values are measured times: the only ones that the same run gives differently."""


def rewind(path: Path, step: int) -> None:
    """Drop the rows after `step`, and what a killed run or a power cut has left half written behind them.

    A run that resumes from a checkpoint repeats what came after it, so that no row is lost or doubled.

    Raises:
        ValueError: a row that the run would not repeat is damaged.
    """
    if not path.exists():
        return
    kept, bad = [], None
    for number, line in enumerate(lines_of(path)[1:], 2):
        if (row := parsed(line)) is None:
            bad = bad or number
        elif row[0] <= step:
            if bad is not None:
                raise ValueError(f"{path} is damaged in line {bad}: take that line out, or begin again with fresh=true")
            kept.append(line)
    write_atomically(path, ",".join(HEADER) + "\n" + "".join(kept))


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
