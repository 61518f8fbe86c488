"""The comparison inside Weights & Biases: a report with the paper's figures, a saved view, and the paper's own curves.

The report finds runs by the tags from training (experiment, scale) and groups their seeds. The paper's curves are
logged once, as reference runs with fixed names, so logging them again changes nothing. Only publishing needs a
network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

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
EVALUATIONS = (VAL, TRAIN, BATCH_STATISTICS, NO_COUNTERPART, AS_TRAINED)
DIAGNOSES = {  # sections of other metrics: title -> metrics
    "Activations: training against inference": (DISTANCE,),
    "What was clipped": ("r_clipped", "d_clipped", "rmax", "dmax"),
    "Training": ("loss", "gradient_norm", "lr", "images_per_second"),
}
COLUMNS = [f"{metric}.{which}" for metric in (VAL, "val_top5", TRAIN) for which in ("max", "last")]
"""Best and last values that training writes to a run's summary."""
WIDE = {"w": 24, "h": 10}


def report_title(scale: str) -> str:
    return f"Batch Renormalization, {scale}: ours over theirs"


def report(entity: str, project: str, scale: str, published: Published) -> Any:
    """The report, not yet saved."""
    import wandb_workspaces.reports.v2 as wr

    text = (
        f"The seven experiments of Batch Renormalization (Ioffe, 2017) at scale {scale}: mean and range over "
        "seeds, with the curves that the paper published."
    )
    blocks: list[Any] = [wr.P(text), wr.TableOfContents()]
    for figure in FIGURES.values():
        blocks += [wr.H2(figure.title), *_figure(figure, scale, published)]
    for heading, metrics in DIAGNOSES.items():
        panels = [_line([m], layout={"x": 12 * (i % 2), "y": 9 * (i // 2)}) for i, m in enumerate(metrics)]
        blocks += [wr.H2(heading), _grid(list(EXPERIMENTS), scale, panels)]
    return wr.Report(
        project=project, entity=entity, title=report_title(scale), blocks=blocks, width="fluid",
        description="Ours over the paper's.",
    )  # fmt: skip


def _figure(figure: Figure, scale: str, published: Published) -> Iterator[Any]:
    """A figure's validation curves; below, a separate panel for each experiment that is evaluated in several ways.

    On the paper's data set its curves are thin lines under ours. On another data set they have separate panels, because
    their steps and accuracies differ.
    """
    over = scale == "imagenet"
    names = [name for name, _ in figure.lines]
    several = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    for experiments, metrics in [(list(dict.fromkeys(names)), [VAL]), *(([name], EVALUATIONS) for name in several)]:
        several_ways = f"{EXPERIMENTS[experiments[0]].title}, evaluated in several ways"
        options: dict[str, Any] = {"title": figure.title if len(metrics) == 1 else several_ways, "layout": WIDE}
        papers = {"range_y": (30.0, 80.0)}
        if over:
            options |= {"line_widths": {f"{PAPER}-{name}:{m}": 1.0 for name, m in figure.lines}, **papers}
        yield _grid(experiments, scale, [_line(metrics, **options)], ours=True, papers=over)
        if not over:
            known = [m for m in metrics if any((name, m) in published.curves for name in experiments)]
            options |= {"title": f"The paper: {options['title']}", **papers}
            yield _grid(experiments, scale, [_line(known, **options)], ours=False, papers=True)


def _grid(
    experiments: Sequence[str], scale: str, panels: Sequence[Any], ours: bool = True, papers: bool = False
) -> Any:
    """Panels of our runs, grouped by seeds, and of the paper's reference runs, in the colours of the figures."""
    import wandb_workspaces.reports.v2 as wr
    from wandb_workspaces.expr import And, Tags
    from wandb_workspaces.reports.v2.interface import RunsetGroup, RunsetGroupKey

    sets: list[Any] = []
    colors: dict[Any, Any] = {}
    for name in experiments if ours else ():
        title, filters = EXPERIMENTS[name].title, And(Tags().isin([name]), Tags().isin([scale]))
        sets.append(wr.Runset(name=title, filters=filters, groupby=["group"]))
        group = RunsetGroup(title, (RunsetGroupKey(wr.Metric("Group"), f"{scale}/{name}"),))
        colors[group] = look((name, VAL)).color
    if papers:
        tags = Tags().isin([f"{PAPER}-{name}" for name in experiments])
        sets.append(wr.Runset(name="The paper", filters=And(tags)))
        colors |= {f"{PAPER}-{name}": look((name, VAL)).color for name in experiments}
    return wr.PanelGrid(runsets=sets, panels=list(panels), custom_run_colors=colors, hide_run_sets=True)


def _line(metrics: Sequence[str], **options: Any) -> Any:
    import wandb_workspaces.reports.v2 as wr

    layout = wr.Layout(**{"w": 12, "h": 9} | options.pop("layout", {}))
    return wr.LinePlot(
        x=STEP, y=list(metrics), title_x="training steps", groupby_aggfunc="mean", groupby_rangefunc="minmax",
        smoothing_type="none", max_runs_to_show=50, layout=layout,
        **{"title": metrics[0].replace("_", " "), **options},
    )  # fmt: skip


def workspace(entity: str, project: str, scale: str) -> Any:
    """The view, not yet saved: everything of one scale, with seeds grouped and a section per question."""
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces.expr import And, Metric, Tags

    sections = {"Accuracy": EVALUATIONS} | DIAGNOSES
    view = ws.Workspace(
        entity=entity,
        project=project,
        name=report_title(scale),
        sections=[
            ws.Section(name=name, panels=[_line([metric]) for metric in metrics], is_open=name == "Accuracy")
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


def specification(entity: str, project: str, scale: str, published: Published) -> dict[str, Any]:
    """The JSON values that would be published."""
    made, view = report(entity, project, scale, published)._to_model(), workspace(entity, project, scale)._to_model()
    dump = {"by_alias": True, "exclude_none": True, "mode": "json"}
    return {
        "report": {"title": made.display_name, "spec": made.spec.model_dump(**dump)},
        "workspace": {"name": view.display_name, "internal_name": view.name, "spec": view.spec.model_dump(**dump)},
        "references": [{"id": r.id, "tags": r.tags, "rows": len(r.rows)} for r in references(published)],
    }


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
