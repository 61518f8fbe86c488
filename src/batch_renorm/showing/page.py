"""One HTML file with everything: interactive curves, tables, configs, runs. It needs no network.

The page itself is in page_files/ (markup, style, script); this module collects its data and inserts them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import Any

from batch_renorm.records.config import flat_options
from batch_renorm.reporting.checks import DISTANCE
from batch_renorm.reporting.compare import Comparison, series_of, values_by_seed
from batch_renorm.reporting.lists import title
from batch_renorm.reporting.paper import (
    BASELINE,
    EXPERIMENTS,
    VAL,
    Curve,
    Published,
    Series,
)
from batch_renorm.reporting.recorded import RecordedRun
from batch_renorm.reporting.samples import Sample
from batch_renorm.showing.looks import SHADES, Look, look, looks_of
from batch_renorm.showing.tables import NONE, tables

SYMBOLS = {"": "", "o": "circle", "^": "triangle-up", "s": "square", "D": "diamond", "P": "cross", "v": "triangle-down",
           "X": "x", "*": "star"}  # fmt: skip
OF_THE_MACHINE = ("seed", "folder", "fresh", "trainer", "logger", "experiment")
"""Config sections in which runs of one comparison may differ without being different experiments."""


def page(c: Comparison, runs: Sequence[RecordedRun], published: Published, command: str) -> str:
    """The whole page. It links to the CSV files beside it, and to run folders by absolute paths."""
    from plotly.io import templates
    from plotly.offline import get_plotlyjs

    series = series_of(runs)
    looks = looks_of(series)
    data = {
        "scale": c.scale,
        "command": command,
        "onImagenet": c.scale == "imagenet",
        "series": [_series(s, label, published, looks[s], c.data is None) for s, label in series.items()],
        "files": [f"{c.scale}{part}.csv" for part in ("", "-claims", "-checks")],
        "figures": [
            {"name": f.name, "title": f.title, "lines": [{"id": "/".join(s), "label": n} for s, n in f.lines.items()]}
            for f in c.figures.values()
        ],
        "experiments": {
            name: {"title": text, **_look(looks.get((name, VAL), look((name, VAL))))}
            for name, text in _titles(runs).items()
        },
        "footnotes": published.footnotes(series) if c.data is None else [],
        "baseline": {"ours": _mean(runs), "theirs": number.top1 if (number := published.number(BASELINE)) else None},
        "runs": [_run(run) for run in runs],
        "tables": [vars(table) for table in tables(c)],
        "configs": config_differences(runs),
        "missing": c.missing,
        "notes": c.notes,
        "distance": DISTANCE,
        "shades": {"batchnorm": SHADES[False], "renorm": SHADES[True]},
        "templates": {
            side: templates[name].to_plotly_json()
            for side, name in (("light", "plotly_white"), ("dark", "plotly_dark"))
        },
    }
    folder = files("batch_renorm.showing") / "page_files"
    text = (folder / "page.html").read_text(encoding="utf-8")
    parts = {
        "TITLE": escape(f"Batch Renormalization, {c.scale}: ours over theirs"),
        "STYLE": (folder / "page.css").read_text(encoding="utf-8"),
        "PLOTLY": get_plotlyjs(),
        # Inside a script element only "</" could end it early.
        "DATA": json.dumps(data, separators=(",", ":"), allow_nan=False).replace("</", "<\\/"),
        "SCRIPT": (folder / "page.js").read_text(encoding="utf-8"),
    }
    for name, part in parts.items():
        text = text.replace(f"%%{name}%%", part, 1)
    return text


def _titles(runs: Sequence[RecordedRun]) -> dict[str, str]:
    """Every row's experiment -> its title, the paper's first."""
    return {name: title(name) for name in (*EXPERIMENTS, *sorted({run.experiment for run in runs} - set(EXPERIMENTS)))}


def _mean(runs: Sequence[RecordedRun]) -> float | None:
    values = tuple(values_by_seed(runs, BASELINE, "best").values())
    return Sample(values).mean if values else None


def _look(style: Look) -> dict[str, str]:
    return {"light": style.light, "dark": style.dark, "mark": SYMBOLS[style.mark]}


def _number(value: object) -> float | None:
    """A number that JSON and a browser can read."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _curve(curve: Curve | None) -> dict[str, list[float]] | None:
    if curve is None:
        return None
    return {"x": [float(f"{x:.8g}") for x in curve[0]], "y": [float(f"{y:.5g}") for y in curve[1]]}


def _series(series: Series, label: str, published: Published, style: Look, beside: bool) -> dict[str, Any]:
    """The data of one curve; `beside` says whether to show the paper's curve and number beside ours."""
    experiment, metric = series
    if label.startswith("- "):
        label = f"{title(experiment)}: {label.removeprefix('- ')}"
    number = published.number(series)
    return {
        "id": f"{experiment}/{metric}",
        "experiment": experiment,
        "metric": metric,
        "label": label,
        "paper": _curve(published.curves.get(series)) if beside else None,
        "printed": number.top1 if number and beside else None,
        "noted": bool(published.footnotes([series])) and beside,
        **_look(style),
    }


def _run(run: RecordedRun) -> dict[str, Any]:
    info = run.info
    versions = info.get("versions") if isinstance(info.get("versions"), dict) else {}
    return {
        "experiment": run.experiment,
        "seed": run.seed,
        "finished": run.finished,
        "progress": run.progress,
        "step": run.step,
        "steps": run.steps,
        "folder": run.folder.resolve().as_uri(),  # absolute: stays right if the page is moved
        "place": run.folder.as_posix(),
        "wandb": wandb_link(run),
        "offline": any((run.folder / "wandb").glob("offline-run-*")),
        "minutes": seconds / 60 if (seconds := _number(info.get("wall_seconds"))) else None,
        "speed": _number(info.get("images_per_second")),
        "commit": (info.get("commit") or "")[:9],
        "device": info.get("device"),
        "started": info.get("started"),
        "torch": (versions or {}).get("torch"),
        "time": _curve(run.training_seconds()),
        "curves": {name: _curve(curve) for name, curve in run.curve.items() if "/" not in name},
        "layers": {name: _curve(curve) for name, curve in run.layers(DISTANCE).items()},
    }


def wandb_link(run: RecordedRun) -> str | None:
    """The run's address at Weights & Biases, which training writes to `wandb/url`."""
    try:
        url = (run.folder / "wandb" / "url").read_text().strip()
    except OSError:
        return None
    return url if url.startswith(("https://", "http://")) else None


def config_differences(runs: Sequence[RecordedRun]) -> dict[str, Any]:
    """Every option in which runs differ: its value by experiment, or by seed if seeds differ."""
    found = [
        (run, dict(flat_options({k: v for k, v in run.config.items() if k not in OF_THE_MACHINE})))
        for run in sorted(runs, key=lambda run: run.seed)
        if run.config
    ]
    titles = {name: t for name, t in _titles(runs).items() if any(run.experiment == name for run, _ in found)}
    rows = []
    for option in dict.fromkeys(option for _, own in found for option in own):
        values = [(run, json.dumps(own.get(option))) for run, own in found]
        if len({value for _, value in values}) > 1:
            cells = []
            for name in titles:
                own = {run.seed: value for run, value in values if run.experiment == name}
                same = len(set(own.values())) == 1
                text = next(iter(own.values())) if same else ", ".join(f"{s}: {v}" for s, v in own.items())
                cells.append(NONE if text == "null" else text.replace('"', ""))
            rows.append([option, *cells])
    return {"head": ["", *titles.values()], "rows": rows}
