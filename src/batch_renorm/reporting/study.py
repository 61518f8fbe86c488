"""A study: final and best accuracy over the values of one option in which runs differ.

A line holds the runs of one experiment that agree in all else that changes training. So runs that differ in another
option, too, are lines of their own, one for each of its values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from math import inf, isfinite

from batch_renorm.errors import UserError
from batch_renorm.records.config import flat_options
from batch_renorm.reporting.differences import Expected, as_text, row_name
from batch_renorm.reporting.paper import VAL
from batch_renorm.reporting.recorded import RecordedRun
from batch_renorm.reporting.samples import Sample


@dataclass(frozen=True)
class Line:
    name: str  # the experiment, and in what else its runs differ from it
    points: Mapping[str, Sequence[RecordedRun]]  # the option's value as text -> runs, in the order of the values
    default: str | None  # the experiment's own value, if it is known


def study(runs: Sequence[RecordedRun], option: str, expected: Expected, experiments: Sequence[str] = ()) -> list[Line]:
    """The lines with several values; with `experiments`, all lines of these.

    Raises:
        UserError: no run has the option, or no runs differ in it.
    """
    configs = [dict(flat_options(run.config)) for run in runs]
    known = {name for config in configs for name in config}
    if option not in known:
        close = get_close_matches(option, known, n=3)
        raise UserError(f"no run has the option {option}" + f"; did you mean {' or '.join(close)}?" * bool(close))
    lines: dict[str, dict[str, list[RecordedRun]]] = {}
    for run, config in zip(runs, configs, strict=True):
        if option in config and (not experiments or run.base_experiment in experiments):
            others = {name: value for name, value in run.differs.items() if name != option}
            points = lines.setdefault(row_name(run.base_experiment, others), {})
            points.setdefault(as_text(config[option]), []).append(run)
    several = {name: points for name, points in lines.items() if len(points) > 1}
    if not several:
        raise UserError(f"no runs of one experiment differ in {option} alone: train them with -m")
    made = []
    for name, points in sorted((lines if experiments else several).items()):
        composed = expected(next(iter(points.values()))[0].config) or {}
        default = as_text(composed[option]) if option in composed else None
        made.append(Line(name, {value: points[value] for value in sorted(points, key=_order)}, default))
    return made


def sample(runs: Sequence[RecordedRun], which: str) -> Sample | None:
    """The "final" or "best" accuracies of the finished runs, by seed."""
    values = [getattr(run, which)(VAL) for run in sorted(runs, key=lambda run: run.seed) if run.finished]
    return Sample.of(value for value in values if value is not None)


def axis(values: Sequence[str]) -> tuple[dict[str, float], bool]:
    """Value -> its place on an axis, and whether the axis is logarithmic: from 8 times the least value, if positive.

    Values that are not all finite numbers have even places.
    """
    places = {value: _order(value)[0] for value in sorted(set(values), key=_order)}
    if not all(map(isfinite, places.values())):
        return {value: float(i) for i, value in enumerate(places)}, False
    least, most = min(places.values()), max(places.values())
    return places, 0 < 8 * least <= most


def _order(value: str) -> tuple[float, str]:
    """Numbers in ascending order, then names."""
    try:
        return float(value), ""
    except ValueError:
        return inf, value
