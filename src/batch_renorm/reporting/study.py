"""A study: final and best accuracy over the values of one option, or of two, in which runs differ.

A line holds the runs of one experiment that agree in all else that changes training. Runs that differ in anything but
the studied options are a line of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import pairwise
from math import inf, isfinite, log

from batch_renorm.errors import UserError
from batch_renorm.records.config import flat_options
from batch_renorm.reporting.differences import Expected, as_text, row_name
from batch_renorm.reporting.paper import VAL
from batch_renorm.reporting.recorded import RecordedRun
from batch_renorm.reporting.samples import Sample

Values = tuple[str, ...]
"""A value for each studied option, as text."""


@dataclass(frozen=True)
class Line:
    name: str  # the experiment, and in what else its runs differ from it
    points: Mapping[Values, Sequence[RecordedRun]]  # in the order of the values
    default: Values | None  # the experiment's own values, if they are known


def study(
    runs: Sequence[RecordedRun], options: Sequence[str], expected: Expected, experiments: Sequence[str] = ()
) -> list[Line]:
    """The lines with several values; with `experiments`, all lines of these.

    Raises:
        UserError: no run has one of the options, or no runs differ in them.
    """
    configs = [dict(flat_options(run.config)) for run in runs]
    known = {option for config in configs for option in config}
    for option in options:
        if option not in known:
            close = get_close_matches(option, known, n=3)
            raise UserError(f"no run has the option {option}" + f"; did you mean {' or '.join(close)}?" * bool(close))
    lines: dict[str, dict[Values, list[RecordedRun]]] = {}
    for run, config in zip(runs, configs, strict=True):
        if all(option in config for option in options) and (not experiments or run.base_experiment in experiments):
            others = {option: value for option, value in run.differs.items() if option not in options}
            points = lines.setdefault(row_name(run.base_experiment, others), {})
            points.setdefault(tuple(as_text(config[option]) for option in options), []).append(run)
    several = {name: points for name, points in lines.items() if len(points) > 1}
    if not several:
        raise UserError(f"no runs of one experiment differ in {' and '.join(options)} alone: train them with -m")
    made = []
    for name, points in sorted((lines if experiments else several).items()):
        some = next(iter(points.values()))[0]
        composed = expected(some.config) or {}
        default = tuple(as_text(composed[option]) for option in options if option in composed)
        in_order = {values: points[values] for values in sorted(points, key=lambda values: [*map(_order, values)])}
        made.append(Line(name, in_order, default if len(default) == len(options) else None))
    return made


def sample(runs: Sequence[RecordedRun], which: str) -> Sample | None:
    """The "final" or "best" accuracies of the finished runs, by seed."""
    values = [getattr(run, which)(VAL) for run in sorted(runs, key=lambda run: run.seed) if run.finished]
    values = [value for value in values if value is not None]
    return Sample(tuple(values)) if values else None


def axis(values: Sequence[str]) -> tuple[dict[str, float], bool]:
    """Value -> its place on an axis, and whether the axis is logarithmic.

    It is if the values, all positive, are spaced more evenly there. Values that are not all finite numbers have even
    places.
    """
    ordered = sorted(set(values), key=_order)
    numbers = [_order(value)[0] for value in ordered]
    if not all(map(isfinite, numbers)):
        return {value: float(i) for i, value in enumerate(ordered)}, False
    places = dict(zip(ordered, numbers, strict=True))
    if len(numbers) < 2 or numbers[0] <= 0:
        return places, False
    if len(numbers) == 2:
        return places, numbers[1] >= 10 * numbers[0]
    return places, _uneven([log(number) for number in numbers]) < _uneven(numbers)


def _uneven(places: Sequence[float]) -> float:
    """The largest gap over the smallest."""
    gaps = [b - a for a, b in pairwise(places)]
    return max(gaps) / min(gaps)


def _order(value: str) -> tuple[float, str]:
    """Numbers in ascending order, then names."""
    try:
        return float(value), ""
    except ValueError:
        return inf, value
