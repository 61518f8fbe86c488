"""One HTML file with everything in it: curves to explore, tables, configs, runs. It asks no network for anything.

The page itself is page_files/ (markup, style, script); here its data are gathered and put in.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from batch_renorm.reporting.checks import DISTANCE
from batch_renorm.reporting.compare import Comparison, series_of, values_by_seed
from batch_renorm.reporting.looks import SHADES, look
from batch_renorm.reporting.paper import (
    BASELINE,
    EXPERIMENTS,
    VAL,
    Curve,
    Published,
    Series,
)
from batch_renorm.reporting.runs import Run
from batch_renorm.reporting.samples import Sample
from batch_renorm.reporting.tables import NONE, tables

SYMBOLS = {"": "", "o": "circle", "^": "triangle-up", "s": "square", "D": "diamond", "P": "cross", "v": "triangle-down"}
OF_THE_MACHINE = ("seed", "folder", "fresh", "trainer", "logger", "experiment")
"""Config sections in which runs of one comparison may differ without being different experiments."""


def page(c: Comparison, runs: Sequence[Run], published: Published, command: str, out: Path) -> str:
    """The whole page. Links to run folders are relative to `out`, where it will lie."""
    from plotly.io import templates
    from plotly.offline import get_plotlyjs

    data = {
        "scale": c.scale,
        "command": command,
        "onImagenet": c.scale == "imagenet",
        "series": [_series(s, label, published) for s, label in series_of(runs).items()],
        "figures": [
            {"name": f.name, "title": f.title, "lines": [{"id": "/".join(s), "label": n} for s, n in f.lines.items()]}
            for f in c.figures.values()
        ],
        "experiments": {name: {"title": title, **_look((name, VAL))} for name, title in _titles(runs).items()},
        "baseline": {"ours": _mean(runs), "theirs": number.top1 if (number := published.number(BASELINE)) else None},
        "runs": [_run(run, out) for run in runs],
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
    folder = files("batch_renorm.reporting") / "page_files"
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


def _titles(runs: Sequence[Run]) -> dict[str, str]:
    """The paper's experiments by their titles, other ones by their names."""
    known = {e.name: e.title for e in EXPERIMENTS.values()}
    return known | {name: name for name in sorted({run.experiment for run in runs} - set(known))}


def _mean(runs: Sequence[Run]) -> float | None:
    values = tuple(values_by_seed(runs, BASELINE, "best").values())
    return Sample(values).mean if values else None


def _look(series: Series) -> dict[str, str]:
    style = look(series)
    return {"light": style.light, "dark": style.dark, "mark": SYMBOLS[style.mark]}


def _number(value: object) -> float | None:
    """What JSON and a browser take for a number."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _curve(curve: Curve | None) -> dict[str, list[float]] | None:
    if curve is None:
        return None
    return {"x": [float(f"{x:.8g}") for x in curve[0]], "y": [float(f"{y:.5g}") for y in curve[1]]}


def _series(series: Series, label: str, published: Published) -> dict[str, Any]:
    experiment, metric = series
    if label.startswith("- "):
        label = f"{EXPERIMENTS[experiment].title}: {label.removeprefix('- ')}"
    number = published.number(series)
    return {
        "id": f"{experiment}/{metric}",
        "experiment": experiment,
        "metric": metric,
        "label": label,
        "paper": _curve(published.curves.get(series)),
        "printed": number.top1 if number else None,
        **_look(series),
    }


def _run(run: Run, out: Path) -> dict[str, Any]:
    info = run.info
    versions = info.get("versions") if isinstance(info.get("versions"), dict) else {}
    return {
        "experiment": run.experiment,
        "seed": run.seed,
        "finished": run.finished,
        "progress": run.progress,
        "step": run.step,
        "steps": run.steps,
        "folder": quote(Path(os.path.relpath(run.folder, out)).as_posix()),
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


def wandb_link(run: Run) -> str | None:
    """The run's place at Weights & Biases, which training leaves in `wandb/url` once it is there."""
    try:
        url = (run.folder / "wandb" / "url").read_text().strip()
    except OSError:
        return None
    return url if url.startswith(("https://", "http://")) else None


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of everything in a nested config."""
    if not isinstance(config, dict):
        yield prefix, config
        return
    for key, value in config.items():
        yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))


def config_differences(runs: Sequence[Run]) -> dict[str, Any]:
    """Every option in which two of the runs differ: its value by experiment, or by seed where seeds disagree."""
    found = [
        (run, dict(leaves({k: v for k, v in run.config.items() if k not in OF_THE_MACHINE})))
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
