"""Figures as lists of experiments: the paper's three, our control's, and those that the user requests.

A line is an experiment, `noniid_groupnorm`, one of its metrics, `noniid_batchnorm/train_top1`, or a row of a run that
differs from its experiment, `noniid_renorm, ramp.rmax=5`. Lines without a curve in the paper are marked as ours.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from batch_renorm.errors import UserError
from batch_renorm.reporting.paper import EXPERIMENTS, FIGURES, OWN_SERIES, SERIES, VAL, Figure, Series
from batch_renorm.reporting.recorded import RecordedRun

OURS = " (ours)"
MINIBATCHES = {"iid": "i.i.d.", "micro4": "groups of 4", "noniid": "non-i.i.d."}
NORMS = {"groupnorm": "GroupNorm"}
CONTROL = Figure(
    "groupnorm",
    "The control: GroupNorm sees no minibatch, and does not fall on pairs",
    {
        ("iid_batchnorm", VAL): "Batchnorm, i.i.d. (baseline)",
        ("noniid_batchnorm", VAL): "Batchnorm, non-i.i.d.",
        ("iid_groupnorm", VAL): "GroupNorm, i.i.d. (ours)",
        ("micro4_groupnorm", VAL): "GroupNorm, groups of 4 (ours)",
        ("noniid_groupnorm", VAL): "GroupNorm, non-i.i.d. (ours)",
    },
)
"""Drawn if one of its own experiments has run."""


def title(experiment: str) -> str:
    """The title of the paper's experiments; the name of ours, marked as ours; the unchanged name of other rows."""
    if experiment in EXPERIMENTS:
        return EXPERIMENTS[experiment].title
    name = experiment.partition(", ")[0]
    if name != experiment:
        return experiment
    minibatches, _, arm = name.partition("_")
    if minibatches in MINIBATCHES and arm in NORMS:
        return f"{NORMS[arm]}, {MINIBATCHES[minibatches]}{OURS}"
    return f"{name}{OURS}"


def figures_of(runs: Sequence[RecordedRun], asked: Sequence[Figure] = ()) -> dict[str, Figure]:
    """The figures for some runs, by name: the paper's, the control's if it has run, and the requested ones."""
    own = {experiment for experiment, _ in CONTROL.lines} - set(EXPERIMENTS)
    control = [CONTROL] if any(run.experiment in own for run in runs) else []
    return FIGURES | {figure.name: figure for figure in (*control, *asked)}


def asked_for(lists: Sequence[Sequence[str]], files: Sequence[Path], runs: Sequence[RecordedRun]) -> list[Figure]:
    """The figures of the command line, `own1`, `own2`, ..., and of YAML files: name -> {title: ..., lines: [...]}.

    Raises:
        UserError: a line names no existing experiment, or a file does not describe figures; in one line.
    """
    found = []
    for i, names in enumerate(lists, 1):
        lines = {_series(name, runs): _label(name, runs) for name in names}
        text = ", ".join(names)
        found.append(Figure(f"own{i}", text if len(text) <= 70 else f"{len(lines)} experiments, as asked for", lines))
    for file in files:
        for name, figure in _read(file).items():
            if not isinstance(figure, dict) or not isinstance(figure.get("lines"), list) or not figure["lines"]:
                raise UserError(f"{file}: {name} needs `lines: [experiment, ...]`")
            names = [str(line) for line in figure["lines"]]
            lines = {_series(line, runs): _label(line, runs) for line in names}
            slug = re.sub(r"\W+", "-", str(name))
            found.append(Figure(slug, str(figure.get("title") or name), lines))
    return found


def _read(file: Path) -> dict[Any, Any]:
    try:
        figures = yaml.safe_load(file.read_text())
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{file} is no YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(figures, dict):
        raise UserError(f"{file}: figures are written as `name: {{title: ..., lines: [experiment, ...]}}`")
    return figures


def _series(line: str, runs: Sequence[RecordedRun]) -> Series:
    rows = {run.experiment for run in runs} | set(EXPERIMENTS) | {experiment for experiment, _ in CONTROL.lines}
    metrics = {metric for run in runs for metric in run.curve} | {metric for _, metric in (*SERIES, *OWN_SERIES)}
    row, slash, metric = line.rpartition("/")
    series = (row, metric) if slash and row in rows else (line, VAL)
    if series[0] not in rows:
        close = get_close_matches(series[0], rows, n=3)
        raise UserError(
            f"no runs of {line!r}; "
            + (f"did you mean {' or '.join(map(repr, close))}?" if close else f"there are {', '.join(sorted(rows))}")
        )
    if series[1] not in metrics:
        close = get_close_matches(series[1], metrics, n=3)
        raise UserError(f"no metric {series[1]!r} in any run; " + (f"did you mean {' or '.join(close)}?" * bool(close)))
    return series


def _label(line: str, runs: Sequence[RecordedRun]) -> str:
    experiment, metric = _series(line, runs)
    known = {**SERIES, **OWN_SERIES}.get((experiment, metric), metric.replace("_", " ")).removeprefix("- ")
    return title(experiment) if metric == VAL else f"{title(experiment)}: {known}"
