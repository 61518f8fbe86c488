"""Figures as lists of experiments: the paper's three, our controls', and those that the user requests.

A line is an experiment, `noniid_groupnorm`, one of its accuracies, `noniid_batchnorm/train_top1`, or a row of a run
that differs from its experiment, `noniid_renorm, ramp.rmax=5`. Lines without a curve in the paper are marked as ours.
"""

from collections.abc import Sequence

from batch_renorm.errors import UserError, did_you_mean
from batch_renorm.reporting.paper import BASELINE, EXPERIMENTS, OWN_SERIES, SERIES, VAL, Figure, Series
from batch_renorm.reporting.recorded import RecordedRun

OURS = " (ours)"
MINIBATCHES = {"iid": "i.i.d.", "micro4": "groups of 4", "noniid": "non-i.i.d."}
CONTROLS = {"groupnorm": "GroupNorm", "frozen": "Frozen batchnorm"}
"""Our controls: the end of an experiment's name -> its norm."""


def title(experiment: str) -> str:
    """The title of the paper's experiments; the name of ours, marked as ours; the unchanged name of other rows."""
    if experiment in EXPERIMENTS or ", " in experiment:
        return EXPERIMENTS.get(experiment, experiment)
    minibatches, _, norm = experiment.partition("_")
    if minibatches in MINIBATCHES and norm in CONTROLS:
        return f"{CONTROLS[norm]}, {MINIBATCHES[minibatches]}{OURS}"
    return f"{experiment}{OURS}"


def controls(runs: Sequence[RecordedRun]) -> dict[str, Figure]:
    """A figure for each control that has run: beside batchnorm and Batch Renorm on the same minibatches."""
    rows = {run.experiment for run in runs}
    figures = {}
    for norm, name in CONTROLS.items():
        lines = [BASELINE]
        for minibatches in MINIBATCHES:
            if f"{minibatches}_{norm}" in rows:
                arms = (f"{minibatches}_{arm}" for arm in ("batchnorm", "renorm", norm))
                lines += [(arm, VAL) for arm in arms if arm in rows]
        if len(lines) > 1:
            figures[norm] = Figure(f"A control: {name}", {line: title(line[0]) for line in lines})
    return figures


def asked_for(lists: Sequence[Sequence[str]], runs: Sequence[RecordedRun]) -> dict[str, Figure]:
    """The figures of the command line, `own1`, `own2`, ...

    Raises:
        UserError: no run has what a line names.
    """
    known = {row: (row, VAL) for row in {*EXPERIMENTS, *(run.experiment for run in runs)}}
    accuracies = {(run.experiment, metric) for run in runs for metric in run.curve if "_top" in metric}
    known |= {"/".join(series): series for series in (*SERIES, *OWN_SERIES, *accuracies)}
    figures = {}
    for i, names in enumerate(lists, 1):
        for name in names:
            if name not in known:
                raise UserError(f"no runs of {name!r}{did_you_mean(name, known)}")
        text = ", ".join(names)
        heading = text if len(text) <= 70 else f"{len(names)} experiments, as asked for"
        figures[f"own{i}"] = Figure(heading, {known[name]: _label(known[name]) for name in names})
    return figures


def _label(series: Series) -> str:
    experiment, metric = series
    label = {**SERIES, **OWN_SERIES}.get(series, metric.replace("_", " ")).removeprefix("- ")
    return title(experiment) if metric == VAL else f"{title(experiment)}: {label}"
