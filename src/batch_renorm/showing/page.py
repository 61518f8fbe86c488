"""One HTML file with all curves, as plotly writes it: hover for values, drag to zoom, click a legend to hide a curve.

It needs no network. The tables are on the Markdown page beside it.
"""

from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from batch_renorm.reporting.compare import Comparison, mean_curve
from batch_renorm.reporting.lists import title
from batch_renorm.reporting.paper import Curve, Figure, Published, Series
from batch_renorm.reporting.recorded import RecordedRun
from batch_renorm.showing.looks import Look, looks_of

SYMBOLS = {"o": "circle", "^": "triangle-up", "s": "square", "D": "diamond", "P": "cross", "v": "triangle-down",
           "X": "x", "*": "star"}  # fmt: skip
ROW = 430  # pixels


def page(c: Comparison, runs: Sequence[RecordedRun], published: Published) -> str:
    """The file's text: a row for each figure, the paper's curves on the left, and a row for each other metric."""
    ours, titles, specs = f"Ours, {escape(c.scale)}", [], []
    figures = [*c.figures.values(), *_of_metrics(runs, c)]
    beside = [c.data is None and any(series in published.curves for series in figure.lines) for figure in figures]
    for figure, two in zip(figures, beside, strict=True):
        heading = f"<b>{escape(figure.title)}</b><br>"
        titles += [f"{heading}The paper", f" <br>{ours}"] if two else [heading + ours]
        specs.append([{}, {}] if two else [{"colspan": 2}, None])
    drawing: Any = make_subplots(
        len(figures), 2, shared_yaxes=True, specs=specs, subplot_titles=titles, horizontal_spacing=0.03,
        vertical_spacing=0.3 / len(figures),
    )  # fmt: skip
    drawing.update_annotations(align="left", xanchor="left", font_size=14)  # the titles; they stand at their middles
    for annotation, axis in zip(drawing.layout.annotations, drawing.select_xaxes(), strict=True):
        annotation.x = axis.domain[0]
    for row, (figure, two) in enumerate(zip(figures, beside, strict=True), 1):
        legend, column = f"legend{row}" if row > 1 else "legend", 2 if two else 1
        for series, style in looks_of(figure.lines).items():
            label = figure.lines[series]
            shared = {"legend": legend, "legendgroup": f"{row} {label}"}
            if two and series in published.curves:
                drawing.add_trace(_line(label, published.curves[series], style, **shared, showlegend=False), row, 1)
            for name, curve in _curves(label, series, runs):
                drawing.add_trace(_line(name, curve, style, **shared), row, column)
        top = drawing.get_subplot(row, column).yaxis.domain[1]
        drawing.update_layout({legend: {"y": top, "yanchor": "top", "x": 1.01}})
    drawing.update_xaxes(title_text="training steps", rangemode="tozero")
    drawing.update_layout(
        height=ROW * len(figures), template="plotly_white", margin_t=120, title_y=1 - 40 / ROW / len(figures),
        title_text=f"Batch Renormalization, {escape(c.scale)}: hover for values, drag to zoom, click to hide",
    )  # fmt: skip
    return drawing.to_html(
        include_plotlyjs=True, config={"modeBarButtons": [["toImage", "zoom2d", "pan2d", "resetScale2d"]]}
    )


def _of_metrics(runs: Sequence[RecordedRun], c: Comparison) -> Iterator[Figure]:
    """A figure for each metric that no other figure has, with all experiments that have measured it."""
    drawn = {metric for figure in c.figures.values() for _, metric in figure.lines}
    experiments = dict.fromkeys(row.series[0] for row in c.rows)
    for metric in dict.fromkeys(metric for run in runs for metric in run.curve):
        if metric not in drawn and "/" not in metric:
            having = {run.experiment for run in runs if metric in run.curve}
            lines = {(name, metric): title(name) for name in experiments if name in having}
            yield Figure(metric.replace("_", " "), lines)


def _curves(label: str, series: Series, runs: Sequence[RecordedRun]) -> Iterator[tuple[str, Curve]]:
    """The mean of the finished seeds, and each unfinished seed."""
    experiment, metric = series
    runs = [run for run in runs if run.experiment == experiment and metric in run.curve]
    finished = [run for run in runs if run.finished]
    if curve := mean_curve(finished, metric):
        yield f"{label}, mean of {len(finished)} seeds" if len(finished) > 1 else label, curve[:2]
    for run in runs:
        if not run.finished:
            yield f"{label}, seed {run.seed}, {run.progress}", run.curve[metric]


def _line(name: str, curve: Curve, style: Look, **options: Any) -> Any:
    steps, values = curve
    return go.Scatter(
        x=np.round(steps, 3).tolist(), y=np.round(values, 6).tolist(), name=escape(name),
        mode="lines+markers" if len(steps) < 40 else "lines",
        line={"color": style.color, "width": 2}, marker={"symbol": SYMBOLS.get(style.mark, "circle"), "size": 6},
        hovertemplate="%{y:.4g} at step %{x}", **options,
    )  # fmt: skip
