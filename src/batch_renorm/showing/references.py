"""The paper's curves as Weights & Biases runs with fixed names, logged once, to compare with the user's runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from batch_renorm.reporting.paper import EXPERIMENTS, Published

PAPER = "paper"


@dataclass(frozen=True)
class Reference:
    """A W&B run with curves of the paper."""

    id: str
    experiment: str
    rows: tuple[tuple[int, dict[str, float]], ...]  # step -> metrics

    @property
    def tags(self) -> list[str]:
        return [PAPER, f"{PAPER}-{self.experiment}"]


def references(published: Published) -> list[Reference]:
    made = []
    for experiment in EXPERIMENTS:
        rows: dict[int, dict[str, float]] = {}
        for (name, metric), (steps, values) in published.curves.items():
            if name == experiment:
                for step, value in zip(steps, values, strict=True):
                    rows.setdefault(round(float(step)), {})[metric] = float(value)
        made.append(Reference(f"{PAPER}-{experiment}", experiment, tuple(sorted(rows.items()))))
    return made


def log_references(
    published: Published, project: str, entity: str | None, mode: Literal["offline", "online"], folder: Path
) -> list[str]:
    """Log the reference runs that do not exist yet; return those that it logged.

    "offline" writes W&B's files under `<folder>/wandb`, to be uploaded once.
    """
    import wandb

    logged = []
    there = offline(folder) if mode == "offline" else online(f"{entity}/{project}")
    for reference in references(published):
        if reference.id in there:
            continue
        run = wandb.init(
            project=project, entity=entity, id=reference.id, name=f"{reference.experiment}, the paper",
            group=reference.id, job_type="reference", tags=reference.tags, mode=mode, dir=folder,
            config={"experiment": reference.experiment, "source": "arXiv:1702.03275, figures 1 to 3"},
            settings=wandb.Settings(silent=True),
        )  # fmt: skip
        for step, metrics in reference.rows:
            run.log(metrics, step=step)
        run.finish()
        logged.append(reference.id)
    return logged


def offline(folder: Path) -> set[str]:
    """References with offline files under the folder."""
    names = [path.name for path in (folder / "wandb").glob("offline-run-*")]
    return {f"{PAPER}-{name}" for name in EXPERIMENTS if any(n.endswith(f"-{PAPER}-{name}") for n in names)}


def online(path: str) -> set[str]:
    """The project's reference runs; none if the project does not exist yet."""
    import wandb

    try:
        return {run.id for run in wandb.Api().runs(path, filters={"jobType": "reference"})}
    except ValueError:
        return set()
