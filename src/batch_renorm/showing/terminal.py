"""The report in a terminal, 80 columns or more: curves as small plots, tables, and what is missing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import cycle
from math import ceil, floor
from typing import TYPE_CHECKING, Any

import numpy as np

from batch_renorm.reporting.compare import Comparison, mean_curve, values_by_seed
from batch_renorm.reporting.paper import (
    AS_TRAINED,
    BATCH_STATISTICS,
    NO_COUNTERPART,
    TRAIN,
    Curve,
    Figure,
    Published,
    Series,
)
from batch_renorm.reporting.recorded import RecordedRun
from batch_renorm.showing.looks import is_renorm
from batch_renorm.showing.tables import NONE, accuracy, difference, final, in_short, measured, points, progress, steps

if TYPE_CHECKING:
    from rich.console import Console

ORANGES, BLUE, OTHERS = (
    (208, 172, 222, 137),
    39,
    (35, 72, 114, 140),
)  # of the 256 colours that nearly every terminal has
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SHORT = {  # beside the experiment's own row
    TRAIN: "  on training images",
    BATCH_STATISTICS: "  with batch statistics",
    NO_COUNTERPART: "  each label once",
    AS_TRAINED: "  as trained",
}
VERDICTS = {
    "holds": "green",
    "holds, not sure": "yellow",
    "does not hold, not sure": "yellow",
    "does not hold": "red",
    "not run": "dim",
    "not measured": "dim",
}


def show(c: Comparison, runs: Sequence[RecordedRun], published: Published) -> None:
    """Print plots, tables and what is missing."""
    from rich.console import Console

    console = Console()
    runs = [run for run in runs if run.scale == c.scale]
    for figure in c.figures.values():
        _plot(console, figure, runs, published, c.scale)
    _accuracies(console, c)
    _verdicts(console, c)
    for note in c.notes:
        console.print(note, style="yellow", highlight=False)
    if c.missing:
        console.print("Missing:", *c.missing, sep="\n  ", highlight=False, markup=False, soft_wrap=True)


def _table(title: str, *heads: str, wrapped: Sequence[int] = (0,)) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for i, head in enumerate(heads):
        table.add_column(head, justify="left" if i == 0 else "right", no_wrap=i not in wrapped)
    return table


def _accuracies(console: Console, c: Comparison) -> None:
    wide = console.width >= 120  # 80 columns show the essential ones
    at = min(1, len(c.published_thresholds) - 1)  # one threshold of several; the page has all
    level = f"{c.shares[at]:.0%}" if c.shares else f"{c.published_thresholds[at]:g}%"
    heads = ["experiment", "seeds", "final", *["best"] * wide, "paper", "to\nbase", *["paper's"] * wide]
    heads += [f"steps\nto {level}", *["paper's"] * wide]
    of = " of the baseline's best" if c.shares else ""
    table = _table(f"Top-1 in percent, scale {c.scale}; steps to {level}{of}", *heads, wrapped=())
    for row in c.rows:
        unfinished = [f"{run.seed}: {progress(run)}" for run in row.unfinished]
        seeds = "\n".join([in_short(row.seeds, ",")] * bool(row.seeds) + unfinished) or NONE
        cells = [
            SHORT.get(row.series[1], row.label.replace(" on halves", ", halves")),
            seeds,
            final(row).strip("()"),
            *[accuracy(row.best)] * wide,
        ]
        cells += [f"{row.published:.1f}" if row.published else NONE]
        cells += [points(row.to_baseline.mean if row.to_baseline else None)]
        cells += [points(row.published_to_baseline)] * wide
        reached = row.reach[at] if row.reach and row.seeds else None
        cells += [NONE if reached is None else steps(sum(reached) / len(reached)) if reached else "never"]
        theirs = row.published_reach[at]
        cells += ["never" if theirs is None else steps(theirs)] * wide
        table.add_row(*cells)
    console.print(table)


def _verdicts(console: Console, c: Comparison) -> None:
    title = "The paper's orderings (differences of final accuracies, in points)"
    table = _table(title, "claim", "paper", "ours (95% interval)", "verdict")
    for r in c.claims:
        verdict = f"[{VERDICTS[r.verdict]}]{r.verdict}[/]"
        table.add_row(r.claim.text, points(r.published_final), difference(r.final), verdict)
    console.print(table)
    table = _table("Smaller claims", "claim", "needed", "ours", "verdict")
    for result in c.checks:
        verdict = f"[{VERDICTS[result.verdict]}]{result.verdict}[/]"
        table.add_row(result.check.text, result.check.needed, measured(result), verdict)
    console.print(table)


def _plot(console: Console, figure: Figure, runs: Sequence[RecordedRun], published: Published, scale: str) -> None:
    """The paper's curves beside ours, labelled by letters, so that nothing depends on colours."""
    import plotext
    from rich.text import Text

    ours: dict[Series, Curve] = {}
    for series in figure.lines:
        own = [run for run in runs if run.experiment == series[0] and series[1] in run.curve]
        if curve := mean_curve([run for run in own if run.finished] or own, series[1]):
            ours[series] = curve[0], curve[1]
    theirs = {series: published.curves[series] for series in figure.lines if series in published.curves}
    panels = {"the paper": (theirs, (30.0, 80.0))} if theirs and not any(run.data for run in runs) else {}
    panels |= {f"ours, {scale}": (ours, _range(ours.values()))}
    canvas = plotext.figure
    canvas.clear()
    canvas.subplots(1, len(panels))
    names, hues = list(figure.lines), _hues(figure)
    for i, (title, (curves, (low, high))) in enumerate(panels.items()):
        axes = canvas.subplot(1, i + 1)
        axes.title(title if curves else f"{title}: no run yet")
        axes.canvas("default")
        if not curves:
            continue
        last = max(1, *(at[-1] for at, _ in curves.values()))
        last = float(10_000 * ceil(last / 10_000) if last > 20_000 else last)
        axes.ruler("x").lim(0, last)
        axes.ruler("x").ticks([0, last / 2, last], ["0", steps(last / 2), steps(last)])
        axes.ruler("y").lim(low, high)
        marks = [low, (low + high) / 2, high]
        axes.ruler("y").ticks(marks, [f"{mark:.0f}" for mark in marks])
        for series, (at, values) in curves.items():
            inside = values >= low
            line = axes.signal(
                at[inside].tolist(), values[inside].tolist(), marker=plotext.marker("braille", hues[series])
            )
            axes.draw(line.lines())
        for series, (at, values) in curves.items():  # above all lines, each at a different position
            x = min(last * (0.93 - 0.14 * (names.index(series) % 6)), at[-1])
            letter = plotext.colorize(LETTERS[names.index(series) % len(LETTERS)], hues[series])
            axes.draw(axes.text(x, float(np.interp(x, at, values)), letter))
    canvas.plot_size(min(console.width, 110) - 1, 13)
    console.print(Text(figure.title, style="bold"))
    console.print(Text.from_ansi(str(canvas.build())))
    for series, name in figure.lines.items():
        number = published.number(series)
        seeds = list(values_by_seed(runs, series, "best").values())
        best = f"{sum(seeds) / len(seeds):.1f}" if seeds else NONE
        if not seeds and series in ours:
            best = f"{ours[series][1].max():.1f} so far"
        line = Text(" ").append(LETTERS[names.index(series) % len(LETTERS)], style=f"color({hues[series]})")
        line.append(f" {name:<44}")
        theirs_best = f"paper {number.top1}, " if number and len(panels) > 1 else ""
        console.print(line.append(f"best: {theirs_best}ours {best}"))
    console.print()


def _hues(figure: Figure) -> dict[Series, int]:
    oranges, others = cycle(ORANGES), cycle(OTHERS)
    return {
        series: BLUE if is_renorm(series[0]) else next(oranges if "batchnorm" in series[0] else others)
        for series in figure.lines
    }


def _range(curves: Iterable[Curve]) -> tuple[float, float]:
    """The paper's proportions: the axis starts at 3/8 of its end."""
    top = max((values.max() for _, values in curves), default=80.0)
    high = 5.0 * ceil((top + 0.5) / 5)
    return 5.0 * floor(high * 30 / 80 / 5), high
