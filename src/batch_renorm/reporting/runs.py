"""Finds and reads run folders: `<root>/<scale>/<experiment>/seed<k>/` with config.yaml, curve.csv and run.json.

A run may be writing, killed or broken: everything readable is read, and the rest is reported.
"""

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from batch_renorm.errors import UserError
from batch_renorm.records.curve import HEADER, lines_of, parsed
from batch_renorm.records.folder import read_mapping
from batch_renorm.records.naming import as_name
from batch_renorm.reporting.differences import Expected, apart
from batch_renorm.reporting.paper import Curve
from batch_renorm.reporting.recorded import RecordedRun


def read_curve(path: Path) -> tuple[dict[str, Curve], list[str]]:
    """A curve file as metric -> (steps, values), and notes on what was left out.

    The last line counts only with its line end: "3000,val_top1,7", cut off from 71.2, would read as a number. If
    a step was logged twice, the later value counts.
    """
    lines = lines_of(path) if path.is_file() else []
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    points: dict[str, dict[int, float]] = {}
    bad: list[int] = []
    for number, line in enumerate(lines, 1):
        if number == 1 and line.strip() == ",".join(HEADER):
            continue
        row = parsed(line)
        if row is None or not math.isfinite(row[2]):
            bad.append(number)
        else:
            points.setdefault(row[1], {})[row[0]] = row[2]
    curve = {}
    for metric, values in points.items():
        steps = sorted(values)
        curve[metric] = np.array(steps), np.array([values[s] for s in steps])
    notes = [f"{path}: {len(bad)} lines are not a finite number (the first is line {bad[0]})"] if bad else []
    return curve, notes


def read_run(folder: Path) -> RecordedRun:
    """Read one run folder. Raises UserError, in one line, if there is nothing to show."""
    curve, notes = read_curve(folder / "curve.csv")
    config = _mapping(folder / "config.yaml", notes)
    info = _mapping(folder / "run.json", notes)
    if not curve and info.get("state") != "stopped":  # one that diverged at once is a result
        raise UserError(f"{folder}: no complete line in curve.csv yet, nothing to show")

    scale, experiment, seed = (
        _typed(config.get(k), kind) for k, kind in (("scale", str), ("experiment", str), ("seed", int))
    )
    if not scale or not experiment or seed is None:
        raise UserError(f"{folder}: left out, its config.yaml does not say scale, experiment and seed")
    step = max([_typed(info.get("step"), int, 0), *(int(s[-1]) for s, _ in curve.values())])
    steps, state = _typed(info.get("steps"), int), str(info.get("state", "unknown"))
    return RecordedRun(folder, as_name(scale), experiment, seed, steps, step, state, curve, config, info, tuple(notes))


def find_runs(roots: Iterable[Path], expected: Expected | None = None) -> tuple[list[RecordedRun], list[str]]:
    """All runs under the roots, and a line for each folder that could not be read.

    A root may contain scales, or be a scale, an experiment or a run. If two runs have the same scale, row and seed,
    the one under the earlier root counts. `expected` is passed to differences.apart, which names the rows.
    """
    problems: list[str] = []
    readable: list[RecordedRun] = []
    for root in roots:
        levels = ("", "*/", "*/*/", "*/*/*/")
        places = {
            p.parent for level in levels for name in ("config.yaml", "curve.csv") for p in root.glob(level + name)
        }
        # a run that `fresh=true` moved aside (seed0.old) is not a run any more
        places = {p for p in places if not re.fullmatch(r"seed\d+\..+", p.resolve().name)}
        for folder in sorted(places - {run.folder for run in readable}):
            try:
                readable.append(read_run(folder))
            except (ValueError, OSError) as error:
                problems.append(str(error))
    runs: dict[tuple[str, str, int], RecordedRun] = {}
    for run in apart(readable, expected):
        first = runs.setdefault((run.scale, run.experiment, run.seed), run)
        if first is run:
            problems.extend(run.notes)
        else:
            problems.append(f"{run.folder}: left out, {first.folder} is the same run and comes first")
    return list(runs.values()), problems


def _typed(value: Any, kind: type, default: Any = None) -> Any:
    return value if type(value) is kind else default


def _mapping(path: Path, notes: list[str]) -> dict[str, Any]:
    """A config or a record; an error while reading it becomes a note."""
    try:
        return read_mapping(path)
    except (OSError, UserError) as error:
        notes.append(f"left out: {error}")
    return {}
