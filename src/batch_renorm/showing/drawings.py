"""All drawings of a report as files: the figures and the summary, and activations and mechanism if a run has them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context

from batch_renorm.reporting.paper import Figure, Published
from batch_renorm.reporting.recorded import RecordedRun
from batch_renorm.showing.diagnoses import draw_activations, draw_mechanism
from batch_renorm.showing.figures import draw_curves
from batch_renorm.showing.looks import FAINT, INK
from batch_renorm.showing.summary import draw_summary

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 13,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 13,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.solid_capstyle": "round",
    "text.parse_math": False,  # a name with two $ is a name
    "svg.hashsalt": "batch-renorm",  # makes files reproducible
}


def draw_all(
    runs: Sequence[RecordedRun], published: Published, scale: str, folder: Path, figures: Mapping[str, Figure]
) -> list[Path]:
    """Write PNG and SVG files of a scale's runs; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    with rc_context(STYLE):
        drawings = {name: draw_curves(figure, runs, published, scale) for name, figure in figures.items()}
        drawings["summary"] = draw_summary(runs, published, scale)
        drawings["activations"] = draw_activations(runs)
        drawings["mechanism"] = draw_mechanism(runs)
        return [path for name, drawing in drawings.items() if drawing for path in save(drawing, folder / name)]


def save(drawing: Any, path: Path) -> list[Path]:
    """Write <path>.png and <path>.svg; the same drawing gives the same bytes."""
    files = [path.with_name(f"{path.name}.{kind}") for kind in ("png", "svg")]
    for file in files:
        drawing.savefig(file, dpi=160, facecolor="white", metadata={"Date": None} if file.suffix == ".svg" else None)
    return files
