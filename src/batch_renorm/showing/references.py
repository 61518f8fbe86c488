"""The paper's curves as Weights & Biases runs with fixed names, logged once, to compare with the user's runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import wandb

from batch_renorm.reporting.paper import EXPERIMENTS, Published

PAPER = "paper"


def reference_id(experiment: str) -> str:
    """The id of a reference run, which is also one of its tags."""
    return f"{PAPER}-{experiment}"


def rows(published: Published, experiment: str) -> Mapping[int, Mapping[str, float]]:
    """Step -> metrics of an experiment's curves, in ascending order."""
    by_step: dict[int, dict[str, float]] = {}
    for (name, metric), (steps, values) in published.curves.items():
        if name == experiment:
            for step, value in zip(steps, values, strict=True):
                by_step.setdefault(round(float(step)), {})[metric] = float(value)
    return dict(sorted(by_step.items()))


def log_references(
    published: Published, project: str, entity: str | None, mode: Literal["offline", "online"], folder: Path
) -> list[str]:
    """Log the reference runs that do not exist yet; return those that it logged.

    "offline" writes W&B's files under `<folder>/wandb`, to be uploaded once.
    """
    names = [path.name for path in (folder / "wandb").glob("offline-run-*")]
    there = {name.split("-", 3)[-1] for name in names} if mode == "offline" else online(f"{entity}/{project}")
    missing = [name for name in EXPERIMENTS if reference_id(name) not in there]
    for experiment in missing:
        run = wandb.init(
            project=project, entity=entity, id=reference_id(experiment), name=f"{experiment}, the paper",
            group=reference_id(experiment), job_type="reference", tags=[PAPER, reference_id(experiment)], mode=mode,
            config={"experiment": experiment, "source": "arXiv:1702.03275, figures 1 to 3"}, dir=folder,
            settings=wandb.Settings(silent=True),
        )  # fmt: skip
        for step, metrics in rows(published, experiment).items():
            run.log(dict(metrics), step=step)
        run.finish()
    return missing


def online(path: str) -> set[str]:
    """The project's reference runs; none if the project does not exist yet."""
    try:
        return {run.id for run in wandb.Api().runs(path, filters={"jobType": "reference"})}
    except ValueError:
        return set()
