"""curve.csv: a run's measurements, in rows of step, metric, value."""

from pathlib import Path

from batch_renorm import durable
from batch_renorm.errors import UserError

HEADER = ["step", "metric", "value"]
BY_THE_CLOCK = ("images_per_second", "seconds_")
"""Prefixes of metrics that measure time: only these differ when the same run is repeated."""


def read_rows(path: Path) -> list[tuple[int, str, float]]:
    """The whole rows (step, metric, value) in the file's order; empty if there is no file."""
    rows = (parsed(line) for line in lines_of(path)[1:]) if path.exists() else ()
    return [row for row in rows if row is not None]


def accuracies(path: Path) -> dict[int, float]:
    """The validation accuracy in percent, by step."""
    return {step: value for step, metric, value in read_rows(path) if metric == "val_top1"}


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


def rewind(path: Path, step: int) -> None:
    """Drop a curve's rows after `step`, including half-written ones from a killed run or a power cut.

    A run that resumes from a checkpoint repeats the steps after it, so that no row is lost or doubled.

    Raises:
        UserError: a row up to `step`, which the run would not repeat, is damaged, or the file is missing.
    """
    if not path.exists():
        if step:
            raise UserError(f"{path} is missing, with its rows up to step {step:,}: get it, or say fresh=true")
        return
    kept, bad = [], None
    for number, line in enumerate(lines_of(path)[1:], 2):
        if (row := parsed(line)) is None:
            bad = bad or number
        elif row[0] <= step:
            if bad is not None:
                raise UserError(f"{path} is damaged in line {bad}: take that line out, or begin again with fresh=true")
            kept.append(line)
    durable.write_text(path, ",".join(HEADER) + "\n" + "".join(kept))
