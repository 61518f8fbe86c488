"""What some runs lack for a complete comparison: missing runs, and runs that cannot be compared."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import yaml

from batch_renorm.records.config import flat_options
from batch_renorm.reporting.paper import EXPERIMENTS, VAL
from batch_renorm.reporting.recorded import RecordedRun

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
MOST = 2 / 3  # if this fraction of the experiments has a seed, the others lack it; some may have extra seeds on purpose


def missing_commands(runs: Sequence[RecordedRun], scale: str) -> list[str]:
    """The commands that complete the table: every experiment with the seeds that most have, and unfinished runs."""
    there = {(run.experiment, run.seed): run for run in runs if run.experiment in EXPERIMENTS}
    begun = {experiment for experiment, _ in there}
    have = Counter(seed for _, seed in there)
    seeds = sorted(seed for seed, n in have.items() if n >= MOST * len(begun)) or sorted(have)[:1] or [0]
    model = next((run for run in runs if run.data), None)
    base = scale.removesuffix(f"-{model.data}") if model else scale
    if (CONFIGS / "scale").is_dir() and not (CONFIGS / "scale" / f"{base}.yaml").is_file():
        return []  # the scale is not, or no longer, in configs/scale: no command can run it
    extra = "" if base == "glyphs" else f" scale={base}"
    if model:
        extra += "".join(f" {option}" for option in data_options(model))
    elif base == "imagenet":
        extra += f" data.root={_data_root(runs)}"
    commands = []
    for experiment in EXPERIMENTS:
        begun_here = {s for (name, s), run in there.items() if name == experiment and not run.finished}
        for seed in sorted({*seeds} | begun_here):
            run = there.get((experiment, seed))
            if run is None or not run.finished:
                why = f"  # resumes: {run.progress}" if run else ""
                where = _folder(model, experiment, seed) if model else ""
                commands.append(f"python train.py experiment={experiment} seed={seed}{extra}{where}{why}")
    return commands


def data_options(run: RecordedRun) -> list[str]:
    """The options for training on the run's data set: `data=<choice>` and the options that differ from it.

    The choice is the file of configs/data that agrees best with the run's config.
    """
    own = dict(flat_options(run.config["data"]))
    choices = {}
    for file in sorted((CONFIGS / "data").glob("*.yaml")):
        choice = dict(flat_options(yaml.safe_load(file.read_text())))
        if choice.get("_target_") == own.get("_target_") and choice.keys() >= own.keys():
            choices[file.stem] = choice
    if not choices:
        return [f"data.{option}={_quoted(value)}" for option, value in own.items()]
    best = max(choices, key=lambda name: sum(choices[name].get(option) == value for option, value in own.items()))
    differing = {option: value for option, value in own.items() if choices[best].get(option) != value}
    return [f"data={best}", *(f"data.{option}={_quoted(value)}" for option, value in differing.items())]


def _quoted(value: object) -> str:
    return shlex.quote(value if isinstance(value, str) else json.dumps(value))


def _folder(model: RecordedRun, experiment: str, seed: int) -> str:
    """A folder beside a run of the comparison, if that run has its own folder (folder=...)."""
    folder = model.config.get("folder")
    if not isinstance(folder, str) or Path(folder).parts[-2:] != (model.of, f"seed{model.seed}"):
        return ""
    return " folder=" + shlex.quote((Path(folder).parent.parent / experiment / f"seed{seed}").as_posix())


def _data_root(runs: Sequence[RecordedRun]) -> str:
    """The folder from which existing runs read their images."""
    for run in runs:
        data = run.config.get("data")
        if isinstance(data, dict) and isinstance(data.get("root"), str):
            return shlex.quote(data["root"])
    return "/path/to/imagenet"


def set_apart(runs: Sequence[RecordedRun]) -> list[str]:
    """Rows that do not count in verdicts, because they were not trained like the paper's experiments."""
    rows: dict[str, list[int]] = {}
    for run in runs:
        if run.differs:
            rows.setdefault(run.experiment, []).append(run.seed)
    if not rows:
        return []
    text = "; ".join(f"{name} (seed {', '.join(map(str, sorted(seeds)))})" for name, seeds in sorted(rows.items()))
    return [f"in rows of their own and in no verdict, as they differ from their experiments: {text}"]


def not_drawn(runs: Sequence[RecordedRun]) -> list[str]:
    """Runs whose curves lack something that a table or a figure needs."""
    without = [f"{run.experiment} seed {run.seed}" for run in runs if VAL not in run.curve]
    return [f"without {VAL}, so that only their other metrics are drawn: {', '.join(sorted(without))}"] * bool(without)


def other_compositions(runs: Sequence[RecordedRun]) -> list[str]:
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
