"""What some runs lack for a complete comparison: missing runs, and runs that cannot be compared."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence

from batch_renorm.reporting.paper import EXPERIMENTS, VAL
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
    roots = [run.config["data"].get("root") for run in runs if isinstance(run.config.get("data"), dict)]
    root = next(filter(None, roots), "/path/to/imagenet" if scale == "imagenet" else None)
    options = "" if scale == "glyphs" else f" scale={scale}"
    options += f" data.root={shlex.quote(str(root))}" if root else ""
    commands = []
    for experiment in EXPERIMENTS:
        unfinished = {seed for (name, seed), run in there.items() if name == experiment and not run.finished}
        for seed in sorted({*seeds} | unfinished):
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


def not_drawn(runs: Sequence[RecordedRun]) -> list[str]:
    """Runs whose curves lack something that a table or a figure needs."""
    without = [f"{run.experiment} seed {run.seed}" for run in runs if VAL not in run.curve]
    return [f"without {VAL}, so that only their other metrics are drawn: {', '.join(sorted(without))}"] * bool(without)


def other_compositions(runs: Sequence[RecordedRun]) -> list[str]:
    """The paper evaluates batch statistics on minibatches of 25 labels x 2, and trains on minibatches of 32."""
    compositions = set()
    for run in runs:
        evaluation, minibatch = run.config.get("evaluation"), run.config.get("minibatch")
        if isinstance(evaluation, dict) and {"labels_per_minibatch", "images_per_label"} <= set(evaluation):
            size = minibatch.get("size", 32) if isinstance(minibatch, dict) else 32
            paper = max(1, 25 * size // 32)
            compositions.add((evaluation["labels_per_minibatch"], evaluation["images_per_label"], paper))
    return [
        f"evaluated with batch statistics of {labels} labels x {images} images, "
        f"where the paper's proportion is {paper} x 2"
        for labels, images, paper in sorted(compositions)
        if (labels, images) != (paper, 2)
    ]
