"""The comparison inside Weights & Biases: a report with the paper's figures, a saved view, and the paper's own curves.

The report finds runs by the tags from training (experiment, scale) and groups their seeds. The paper's curves are
runs with fixed names, logged once. Only publishing needs a network.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import wandb
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from wandb_workspaces.expr import And, Metric, Tags
from wandb_workspaces.reports.v2.interface import RunsetGroup, RunsetGroupKey
from wandb_workspaces.workspaces.internal import View

from batch_renorm.reporting import paper
from batch_renorm.reporting.checks import DISTANCE
from batch_renorm.reporting.paper import EXPERIMENTS, FIGURES, TRAIN, VAL, Published
from batch_renorm.showing.looks import look

DIAGNOSES = {  # sections of other metrics: title -> metrics
    "Activations: training against inference": (DISTANCE,),
    "What was clipped": ("r_clipped", "d_clipped", "rmax", "dmax"),
    "Training": ("loss", "gradient_norm", "lr", "images_per_second"),
}
ACCURACIES = (VAL, TRAIN, paper.BATCH_STATISTICS, paper.NO_COUNTERPART, paper.AS_TRAINED)
COLUMNS = [f"{metric}.{which}" for metric in (VAL, "val_top5", TRAIN) for which in ("max", "last")]
"""Best and last values that training writes to a run's summary."""
PAPER = "paper"  # the tag of the reference runs
STEP = "Step"  # W&B's step: runs log rows by training step


def report_title(scale: str) -> str:
    return f"Batch Renormalization, {scale}: ours beside the paper's"


def report(entity: str, project: str, scale: str) -> Any:
    """The report, not yet saved: for each figure a panel of ours and one of the paper's; then the diagnoses."""
    text = (
        f"The seven experiments of Batch Renormalization (Ioffe, 2017) at scale {scale}: mean and range over "
        "seeds, with the curves that the paper published."
    )
    blocks: list[Any] = [wr.P(text), wr.TableOfContents()]
    for figure in FIGURES.values():
        experiments, metrics = (dict.fromkeys(names) for names in zip(*figure.lines, strict=True))
        blocks += [wr.H2(figure.title), _grid(experiments, metrics, scale), _grid(experiments, metrics, None)]
    for heading, names in DIAGNOSES.items():
        blocks += [wr.H2(heading), _grid(EXPERIMENTS, names, scale)]
    return wr.Report(project=project, entity=entity, title=report_title(scale), blocks=blocks, width="fluid")


def _grid(experiments: Iterable[str], metrics: Iterable[str], scale: str | None) -> Any:
    """A panel a metric, in the figures' colours: our runs at the scale, seeds grouped, or without one the paper's."""
    sets: list[Any] = []
    colors: dict[Any, Any] = {}
    for name in experiments if scale else ():
        title, filters = EXPERIMENTS[name], And(Tags().isin([name]), Tags().isin([scale]))
        sets.append(wr.Runset(name=title, filters=filters, groupby=["group"]))
        group = RunsetGroup(title, (RunsetGroupKey(wr.Metric("Group"), f"{scale}/{name}"),))
        colors[group] = look((name, VAL)).color
    if not scale:
        tags = Tags().isin([reference_id(name) for name in experiments])
        sets.append(wr.Runset(name="The paper", filters=And(tags)))
        colors = {reference_id(name): look((name, VAL)).color for name in experiments}
    panels = [_panel(m, i, "" if scale else "The paper: ") for i, m in enumerate(metrics)]
    return wr.PanelGrid(runsets=sets, panels=panels, custom_run_colors=colors, hide_run_sets=True)


def _panel(metric: str, index: int, prefix: str = "") -> Any:
    """A metric's curves, the index-th panel of two a row."""
    return wr.LinePlot(
        title=prefix + metric.replace("_", " "), x=STEP, y=[metric], title_x="training steps",
        groupby_aggfunc="mean", groupby_rangefunc="minmax", smoothing_type="none", max_runs_to_show=50,
        layout=wr.Layout(x=12 * (index % 2), y=9 * (index // 2), w=12, h=9),
    )  # fmt: skip


def workspace(entity: str, project: str, scale: str) -> Any:
    """The view, not yet saved: everything of one scale, with seeds grouped and a section per question."""
    sections = {"Accuracy": ACCURACIES} | DIAGNOSES
    view = ws.Workspace(
        entity=entity,
        project=project,
        name=report_title(scale),
        sections=[
            ws.Section(name=name, panels=[_panel(m, i) for i, m in enumerate(metrics)], is_open=name == "Accuracy")
            for name, metrics in sections.items()
        ],
        settings=ws.WorkspaceSettings(x_axis=STEP, max_runs=50),
        runset_settings=ws.RunsetSettings(
            filters=And(Tags().isin([scale])),
            groupby=[Metric("Group")],
            group_colors={f"{scale}/{name}": look((name, VAL)).color for name in EXPERIMENTS},
            pinned_columns=[f"summary:{column}" for column in COLUMNS],
        ),
    )
    view._internal_name = f"nw-batchrenorm{scale}-v"  # a fixed name: saving again changes the same view
    return view


def specification(entity: str, project: str, scale: str) -> dict[str, Any]:
    """The JSON values that would be published."""
    made, view = report(entity, project, scale)._to_model(), workspace(entity, project, scale)._to_model()
    dump = {"by_alias": True, "exclude_none": True, "mode": "json"}
    return {
        "report": {"title": made.display_name, "spec": made.spec.model_dump(**dump)},
        "workspace": {"name": view.display_name, "internal_name": view.name, "spec": view.spec.model_dump(**dump)},
    }


def publish(entity: str, project: str, scale: str) -> list[str]:
    """Save report and view, replacing earlier ones with the same names; return their addresses."""
    made, view = report(entity, project, scale), workspace(entity, project, scale)
    for earlier in wandb.Api().reports(f"{entity}/{project}"):
        if earlier.display_name == made.title:
            made.id = earlier.id
    try:
        view._internal_id = View.from_name(entity, project, f"batchrenorm{scale}").id
    except ValueError:  # no such view yet
        view._internal_id = ""
    return [made.save().url, view.save().url]


def reference_id(experiment: str) -> str:
    """The id of a reference run, which is also one of its tags."""
    return f"{PAPER}-{experiment}"


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
        by_step: dict[int, dict[str, float]] = {}
        for (name, metric), (steps, values) in published.curves.items():
            if name == experiment:
                for step, value in zip(steps, values, strict=True):
                    by_step.setdefault(round(step), {})[metric] = float(value)
        for step in sorted(by_step):
            run.log(by_step[step], step=step)
        run.finish()
    return missing


def online(path: str) -> set[str]:
    """The project's reference runs; none if the project does not exist yet."""
    try:
        return {run.id for run in wandb.Api().runs(path, filters={"jobType": "reference"})}
    except ValueError:
        return set()
