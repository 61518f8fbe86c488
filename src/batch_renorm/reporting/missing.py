"""What stands between some runs and a whole comparison: runs that are missing, runs that do not compare."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from batch_renorm.reporting.paper import EXPERIMENTS
from batch_renorm.reporting.runs import Run


def missing_commands(runs: Sequence[Run], scale: str) -> list[str]:
    """The commands that would complete the table: each experiment with each seed that any experiment has."""
    seeds = sorted({run.seed for run in runs}) or [0]
    there = {(run.experiment, run.seed): run for run in runs}
    extra = "" if scale == "glyphs" else f" scale={scale}"
    if scale == "imagenet":
        extra += f" data.root={_data_root(runs)}"
    commands = []
    for experiment in EXPERIMENTS:
        for seed in seeds:
            run = there.get((experiment, seed))
            if run is None or not run.finished:
                why = f"  # resumes: {run.progress}" if run else ""
                commands.append(f"python train.py experiment={experiment} seed={seed}{extra}{why}")
    return commands


def _data_root(runs: Sequence[Run]) -> str:
    """Where the runs that are there have their images from."""
    for run in runs:
        data = run.config.get("data")
        if isinstance(data, dict) and isinstance(data.get("root"), str):
            return shlex.quote(data["root"])
    return "/path/to/imagenet"


def unequal_lengths(runs: Sequence[Run]) -> list[str]:
    """Runs of another length were trained on another schedule and are no comparison."""
    lengths: dict[int, list[str]] = {}
    for run in runs:
        if run.steps is not None:
            lengths.setdefault(run.steps, []).append(f"{run.experiment} seed {run.seed}")
    if len(lengths) < 2:
        return []
    usual = max(lengths, key=lambda steps: len(lengths[steps]))
    return [
        f"not comparable: {', '.join(who)} planned {steps} steps, the others {usual}"
        for steps, who in sorted(lengths.items())
        if steps != usual
    ]


def other_compositions(runs: Sequence[Run]) -> list[str]:
    """The paper evaluates batch statistics on minibatches of 25 labels x 2, and trains on minibatches of 32."""
    found = set()
    for run in runs:
        evaluation, minibatch = run.config.get("evaluation"), run.config.get("minibatch")
        if isinstance(evaluation, dict) and {"labels_per_minibatch", "images_per_label"} <= set(evaluation):
            size = minibatch.get("size", 32) if isinstance(minibatch, dict) else 32
            found.add((evaluation["labels_per_minibatch"], evaluation["images_per_label"], max(1, 25 * size // 32)))
    return [
        f"evaluated with batch statistics of {labels} labels x {images} images, "
        f"where the paper's proportion is {paper} x 2"
        for labels, images, paper in sorted(found)
        if (labels, images) != (paper, 2)
    ]
