"""A study: final and best accuracy over the values of an option in which runs differ, or of several options.

A line holds the runs of one experiment that agree in all else that changes training. So runs that differ in another
option, too, are lines of their own, one for each of its values.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite, prod

from batch_renorm.errors import UserError, did_you_mean
from batch_renorm.records.config import flat_options
from batch_renorm.reporting.differences import Expected, as_text, row_name
from batch_renorm.reporting.paper import VAL
from batch_renorm.reporting.recorded import RecordedRun, Sample

Value = tuple[str, ...]
"""The value of each studied option, as text."""


@dataclass(frozen=True)
class Line:
    name: str  # the experiment, and in what else its runs differ from it
    points: Mapping[Value, Sequence[RecordedRun]]  # in the order of the values
    default: Value | None  # the experiment's own value, if it is known


def study(
    runs: Sequence[RecordedRun], options: Sequence[str], expected: Expected, names: Sequence[str] = ()
) -> list[Line]:
    """The lines with several values, or those with the names, also with one value.

    Raises:
        UserError: no run has an option, no line has a name, or no runs differ in the options alone.
    """
    configs = [dict(flat_options(run.config)) for run in runs]
    known = {name for config in configs for name in config}
    for option in options:
        if option not in known:
            raise UserError(f"no run has the option {option}{did_you_mean(option, known)}")
    lines: dict[str, dict[Value, list[RecordedRun]]] = {}
    for run, config in zip(runs, configs, strict=True):
        if config.keys() >= set(options):
            others = {name: value for name, value in run.differs.items() if name not in options}
            points = lines.setdefault(row_name(run.base_experiment, others), {})
            points.setdefault(tuple(as_text(config[option]) for option in options), []).append(run)
    for name in names:
        if name not in lines:
            raise UserError(f"no runs of {name!r}{did_you_mean(name, lines)}")
    chosen = names or sorted(name for name, points in lines.items() if len(points) > 1)
    if not any(len(lines[name]) > 1 for name in chosen):
        raise UserError(f"no runs of one experiment differ in {' and '.join(options)} alone: train them with -m")
    made = []
    for name in chosen:
        points = lines[name]
        composed = expected(next(iter(points.values()))[0].config) or {}
        default = tuple(as_text(composed[option]) for option in options) if composed.keys() >= set(options) else None
        made.append(Line(name, {value: points[value] for value in in_order(points)}, default))
    return made


def is_grid(lines: Sequence[Line]) -> bool:
    """Whether values of two options are combined, rather than listed in pairs: most cells of the grid are full."""
    values = {value for line in lines for value in line.points}
    sizes = [len(set(column)) for column in zip(*values, strict=True)]
    return len(sizes) == 2 and len(values) > max(sizes) and 2 * len(values) > prod(sizes)


def sample(runs: Sequence[RecordedRun], which: str) -> Sample | None:
    """The "final" or "best" accuracies of the finished runs, by seed."""
    finished = [run for run in sorted(runs, key=lambda run: run.seed) if run.finished and VAL in run.curve]
    return Sample.of(getattr(run, which)(VAL) for run in finished)


def axis(values: Iterable[Value]) -> tuple[dict[Value, float], bool]:
    """Value -> its place on an axis, and whether the axis is logarithmic: from 8 times the least value, if positive.

    Values of several options, or that are not all finite numbers, have even places.
    """
    ordered = in_order(values)
    numbers = [_number(value[0])[0] if len(value) == 1 else inf for value in ordered]
    if not all(map(isfinite, numbers)):
        return {value: float(place) for place, value in enumerate(ordered)}, False
    return dict(zip(ordered, numbers, strict=True)), 0 < 8 * numbers[0] <= numbers[-1]


def in_order(values: Iterable[Value]) -> list[Value]:
    """Numbers in ascending order, then names."""
    return sorted(set(values), key=lambda value: [_number(text) for text in value])


def _number(text: str) -> tuple[float, str]:
    try:
        return float(text), ""
    except ValueError:
        return inf, text
