"""The comparison inside Weights & Biases: a report with the paper's figures, a saved view, and the paper's own curves.

The report finds runs by the tags from training (experiment, scale) and groups their seeds. The paper's curves are
logged once, as reference runs with fixed names, so logging them again changes nothing. Only publishing needs a
network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from batch_renorm.errors import UserError
from batch_renorm.reporting.checks import DISTANCE
from batch_renorm.reporting.paper import (
    AS_TRAINED,
    BATCH_STATISTICS,
    EXPERIMENTS,
    FIGURES,
    NO_COUNTERPART,
    TRAIN,
    VAL,
    Figure,
    Published,
)
from batch_renorm.showing.looks import look
from batch_renorm.showing.references import PAPER, references

STEP = "Step"  # W&B's step: runs log rows by training step
DIAGNOSES = {  # sections of other metrics: title -> metrics
    "Activations: training against inference": (DISTANCE,),
    "What was clipped": ("r_clipped", "d_clipped", "rmax", "dmax"),
    "Training": ("loss", "gradient_norm", "lr", "images_per_second"),
}
EVALUATIONS = {
    VAL: "validation",
    TRAIN: "training images",
    BATCH_STATISTICS: "with batch statistics of pairs",
    NO_COUNTERPART: "with batch statistics, each label once",
    AS_TRAINED: "as trained",
}


def report(entity: str, project: str, scale: str, published: Published) -> Any:
    """The report, not yet saved."""
    import wandb_workspaces.reports.v2 as wr

    blocks: list[Any] = [
        wr.P(
            f"The seven experiments of Batch Renormalization (Ioffe, 2017) at scale {scale}: mean and range over "
            "seeds, with the curves that the paper published."
        ),
        wr.TableOfContents(),
    ]
    for figure in FIGURES.values():
        blocks += [wr.H2(figure.title), *_figure(figure, scale, published)]
    return wr.Report(
        project=project,
        entity=entity,
        title=report_title(scale),
        description="Ours over the paper's.",
        blocks=[*blocks, *_diagnoses(scale)],
        width="fluid",
    )


SUMMARY = {name: (f"{name}.max", f"{name}.last") for name in ("val_top1", "val_top5", "train_top1")}
"""Metrics whose best and last values training writes to a run's summary."""


def report_title(scale: str) -> str:
    return f"Batch Renormalization, {scale}: ours over theirs"


def _runset(experiment: str, scale: str) -> Any:
    import wandb_workspaces.reports.v2 as wr
    from wandb_workspaces.expr import And, Tags

    name = EXPERIMENTS[experiment].title
    return wr.Runset(name=name, filters=And(Tags().isin([experiment]), Tags().isin([scale])), groupby=["group"])


def _papers(experiments: Sequence[str]) -> Any:
    import wandb_workspaces.reports.v2 as wr
    from wandb_workspaces.expr import And, Tags

    return wr.Runset(name="The paper", filters=And(Tags().isin([f"{PAPER}-{name}" for name in experiments])))


def _colors(experiments: Sequence[str], scale: str, papers: bool) -> dict[Any, Any]:
    import wandb_workspaces.reports.v2 as wr
    from wandb_workspaces.reports.v2.interface import RunsetGroup, RunsetGroupKey

    colors: dict[Any, Any] = {}
    for name in experiments:
        group = RunsetGroup(EXPERIMENTS[name].title, (RunsetGroupKey(wr.Metric("Group"), f"{scale}/{name}"),))
        colors[group] = look((name, VAL)).light
        if papers:
            colors[f"{PAPER}-{name}"] = look((name, VAL)).light
    return colors


def _line(name: str, metrics: Sequence[str], **options: Any) -> Any:
    import wandb_workspaces.reports.v2 as wr

    return wr.LinePlot(
        title=name,
        x=STEP,
        y=list(metrics),
        title_x="training steps",
        groupby_aggfunc="mean",
        groupby_rangefunc="minmax",
        smoothing_type="none",
        max_runs_to_show=50,
        layout=wr.Layout(**{"w": 12, "h": 9} | options.pop("layout", {})),
        **options,
    )


def _figure(figure: Figure, scale: str, published: Published) -> Iterator[Any]:
    """A figure's validation curves; below, a separate panel for each experiment that is evaluated in several ways.

    On the paper's data set its curves are thin lines under ours. On another data set they have separate panels, because
    their steps and accuracies differ.
    """
    import wandb_workspaces.reports.v2 as wr

    over = scale == "imagenet"
    experiments = list(dict.fromkeys(experiment for experiment, _ in figure.lines))
    thin = {f"{PAPER}-{name}:{metric}": 1.0 for name, metric in figure.lines}
    limits = {"range_y": (30.0, 80.0)} if over else {}
    several = [e for e in experiments if sum(name == e for name, _ in figure.lines) > 1]
    whole = {"title_y": "top-1 accuracy, %", "layout": {"w": 24, "h": 10}}
    for names, metrics in [(experiments, [VAL]), *(([e], list(EVALUATIONS)) for e in several)]:
        text = figure.title if metrics == [VAL] else f"{EXPERIMENTS[names[0]].title}, evaluated in several ways"
        ours = [_runset(name, scale) for name in names]
        panel = _line(text, metrics, line_widths=thin if over else None, **limits, **whole)
        sets = [*ours, _papers(names)] if over else ours
        yield wr.PanelGrid(
            runsets=sets, panels=[panel], custom_run_colors=_colors(names, scale, over), hide_run_sets=True
        )
        if not over:
            known = [m for m in metrics if any((name, m) in published.curves for name in names)]
            panel = _line(f"The paper: {text}", known, range_y=(30.0, 80.0), **whole)
            yield wr.PanelGrid(runsets=[_papers(names)], panels=[panel], custom_run_colors=_colors(names, scale, True))


def _diagnoses(scale: str) -> Iterator[Any]:
    import wandb_workspaces.reports.v2 as wr

    for text, metrics in DIAGNOSES.items():
        yield wr.H2(text)
        panels = [
            _line(m.replace("_", " "), [m], layout={"x": 12 * (i % 2), "y": 9 * (i // 2)})
            for i, m in enumerate(metrics)
        ]
        if metrics == (DISTANCE,):
            panels = [_line("mean over layers", [DISTANCE], layout={"w": 24, "h": 10})]
        sets = [_runset(name, scale) for name in EXPERIMENTS]
        yield wr.PanelGrid(runsets=sets, panels=panels, custom_run_colors=_colors(list(EXPERIMENTS), scale, False))


def workspace(entity: str, project: str, scale: str) -> Any:
    """The view, not yet saved: everything of one scale, with seeds grouped and a section per question."""
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces.expr import And, Metric, Tags

    sections = {"Accuracy": tuple(EVALUATIONS)} | DIAGNOSES
    view = ws.Workspace(
        entity=entity,
        project=project,
        name=report_title(scale),
        sections=[
            ws.Section(name=name, panels=[_line(m.replace("_", " "), [m]) for m in metrics], is_open=i == 0)
            for i, (name, metrics) in enumerate(sections.items())
        ],
        settings=ws.WorkspaceSettings(x_axis=STEP, max_runs=50),
        runset_settings=ws.RunsetSettings(
            filters=And(Tags().isin([scale])),
            groupby=[Metric("Group")],
            group_colors={f"{scale}/{name}": look((name, VAL)).light for name in EXPERIMENTS},
            pinned_columns=[f"summary:{column}" for metric in EVALUATIONS for column in SUMMARY.get(metric, (metric,))],
        ),
    )
    view._internal_name = f"nw-batchrenorm{scale}-v"  # a fixed name: saving again changes the same view
    return view


def specification(entity: str, project: str, scale: str, published: Published) -> dict[str, Any]:
    """The JSON values that would be published, checked by reading them back with the library that made them.

    Raises:
        UserError: the library cannot read its own specification (for instance of another version).
    """
    from wandb_workspaces.reports.v2 import Report
    from wandb_workspaces.reports.v2.internal import ReportViewspec
    from wandb_workspaces.workspaces.internal import WorkspaceViewspec

    made, view = report(entity, project, scale, published)._to_model(), workspace(entity, project, scale)._to_model()
    dump = {"by_alias": True, "exclude_none": True, "mode": "json"}
    spec = made.spec.model_dump(**dump)
    again = Report._from_model(ReportViewspec.model_validate({**made.model_dump(**dump), "spec": spec}))
    if [type(b) for b in again._to_model().spec.blocks] != [type(b) for b in made.spec.blocks]:
        raise UserError("wandb-workspaces reads the report that it wrote differently; is its version the pinned one?")
    WorkspaceViewspec.model_validate(view.spec.model_dump(**dump))
    return {
        "report": {"entity": entity, "project": project, "title": made.display_name, "spec": spec},
        "workspace": {"name": view.display_name, "internal_name": view.name, "spec": view.spec.model_dump(**dump)},
        "references": [
            {"id": r.id, "tags": r.tags, "rows": len(r.rows), "metrics": sorted({m for _, row in r.rows for m in row})}
            for r in references(published)
        ],
    }


def metrics_named(specification: Any) -> set[str]:
    """Every metric on the axes of a specification's panels."""
    found: set[str] = set()
    if isinstance(specification, dict):
        if "viewType" in specification:
            config = specification.get("config", {})
            found |= {*config.get("metrics", []), *([config["xAxis"]] if "xAxis" in config else [])}
        for value in specification.values():
            found |= metrics_named(value)
    elif isinstance(specification, list):
        for value in specification:
            found |= metrics_named(value)
    return found


def publish(entity: str, project: str, scale: str, published: Published) -> list[str]:
    """Save report and view, replacing earlier ones with the same names; return their addresses."""
    import wandb
    from wandb_workspaces.workspaces.internal import View

    made, view = report(entity, project, scale, published), workspace(entity, project, scale)
    for earlier in wandb.Api().reports(f"{entity}/{project}"):
        if earlier.display_name == made.title:
            made.id = earlier.id
    try:
        view._internal_id = View.from_name(entity, project, f"batchrenorm{scale}").id
    except ValueError:  # no such view yet
        view._internal_id = ""
    return [made.save().url, view.save().url]
