"""The commands that make the runs which a comparison lacks, and the runs that it does not count."""

import shlex
from collections import Counter
from collections.abc import Sequence

from batch_renorm.records.config import flat_options
from batch_renorm.reporting.differences import FILES
from batch_renorm.reporting.paper import EXPERIMENTS
from batch_renorm.reporting.recorded import RecordedRun

MOST = 2 / 3  # if this fraction of the experiments has a seed, the others lack it; some may have extra seeds on purpose


def missing_commands(runs: Sequence[RecordedRun], scale: str) -> list[str]:
    """The commands that complete the table: every experiment with the seeds that most have, and unfinished runs.

    None for runs on another data set than their scale's: they need the options of the runs that are there, too.
    """
    if any(run.data for run in runs):
        return []
    there = {(run.experiment, run.seed): run for run in runs if run.experiment in EXPERIMENTS}
    have = Counter(seed for _, seed in there)
    begun = len({experiment for experiment, _ in there})
    seeds = sorted(seed for seed, n in have.items() if n >= MOST * begun) or sorted(have)[:1] or [0]
    files = {"data.root": "/path/to/imagenet"} if scale == "imagenet" else {}
    files |= {k: v for run in runs for k, v in flat_options(run.config) if k in FILES and v is not None}
    options = "" if scale == "glyphs" else f" scale={scale}"
    options += "".join(f" {option}={shlex.quote(str(file))}" for option, file in files.items())
    commands = []
    for experiment in EXPERIMENTS:
        for seed in sorted({*seeds} | {seed for name, seed in there if name == experiment}):
            run = there.get((experiment, seed))
            if run is None or not run.finished:
                resumes = f"  # resumes: {run.progress}" if run else ""
                commands.append(f"python train.py experiment={experiment} seed={seed}{options}{resumes}")
    return commands


def set_apart(runs: Sequence[RecordedRun]) -> list[str]:
    """Rows that do not count in verdicts, because they were not trained like the paper's experiments."""
    rows: dict[str, list[int]] = {}
    for run in runs:
        if run.differs:
            rows.setdefault(run.experiment, []).append(run.seed)
    text = "; ".join(f"{name} (seed {', '.join(map(str, sorted(seeds)))})" for name, seeds in sorted(rows.items()))
    return [f"in rows of their own and in no verdict, as they differ from their experiments: {text}"] * bool(rows)
