"""The look of a curve, the same in every drawing: a hue for each norm, a tone and a mark for data and evaluation.

Batchnorm is orange and Batch Renorm blue: Okabe and Ito's pair, which colour-blind readers can distinguish. Our
GroupNorm is their green; other experiments outside the paper are purple or grey. Within a hue, tones differ in
lightness, and marks distinguish curves without colour, also in print. The tones for dark pages are lighter.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from batch_renorm.reporting.paper import AS_TRAINED, BATCH_STATISTICS, NO_COUNTERPART, TRAIN, Series


@dataclass(frozen=True)
class Look:
    light: str  # on white
    dark: str  # on nearly black
    mark: str = ""  # matplotlib's letter; "" is a plain line


TONES = {
    "iid_batchnorm": ("#7d3200", "#ffcaa3"),
    "iid_renorm": ("#00416e", "#b9dfff"),
    "micro4_batchnorm": ("#ec7f2f", "#e9741f"),
    "micro4_renorm": ("#3397d6", "#2f8fd0"),
    "noniid_batchnorm": ("#d04f00", "#ff8f45"),
    "noniid_halves_batchnorm": ("#b07a45", "#c39a72"),
    "noniid_renorm": ("#0072b2", "#5bb8ff"),
    "iid_groupnorm": ("#00523b", "#a5e3cc"),
    "micro4_groupnorm": ("#5cb893", "#2f9a72"),
    "noniid_groupnorm": ("#009e73", "#3fcf9f"),
}
OTHERS = (("#6b6b6b", "#a5a5a5"), ("#7b4a9e", "#c39ae0"), ("#3d3d3d", "#d0d0d0"), ("#b06aa0", "#e3a8d4"))
EVALUATIONS = {  # other evaluations of noniid_batchnorm than the paper's usual one
    TRAIN: ("#f29a55", "#ffc08f"),
    BATCH_STATISTICS: ("#8a3600", "#d9671a"),
    NO_COUNTERPART: ("#e8b48a", "#8f5a2c"),
    AS_TRAINED: ("#5e2a05", "#b5561a"),
}
MARKS = {
    "iid_renorm": "^",
    "micro4_batchnorm": "s",
    "micro4_renorm": "P",
    "noniid_halves_batchnorm": "D",
    "noniid_renorm": "o",
    "iid_groupnorm": "X",
    "micro4_groupnorm": "*",
    "noniid_groupnorm": "v",
    TRAIN: "^",
    BATCH_STATISTICS: "s",
    NO_COUNTERPART: "v",
    AS_TRAINED: "P",
}

# In maps lightness shows the size and hue shows the norm; both hues have the same lightnesses.
SHADES = {False: ("#ffffff", "#fdd9bd", "#f5a567", "#d96a1c", "#8f3a00", "#3f1900"),
          True: ("#ffffff", "#cde4f5", "#86bfe6", "#2f86c2", "#00507f", "#002339")}  # fmt: skip

INK, FAINT = "#222222", "#767676"


def look(series: Series) -> Look:
    """The fixed look of a known experiment; for others see `looks_of`."""
    experiment, metric = series
    light, dark = EVALUATIONS[metric] if metric in EVALUATIONS else TONES.get(experiment, OTHERS[0])
    return Look(light, dark, MARKS.get(metric, MARKS.get(experiment, "")))


def looks_of(lines: Iterable[Series]) -> dict[Series, Look]:
    """A look for each of some curves on the same axes, all different as long as there are enough looks."""
    found: dict[Series, Look] = {}
    spare = [Look(*tone, mark) for mark in ("o", "s", "^", "D", "v", "X", "P", "*", "") for tone in OTHERS]
    for series in lines:
        own = look(series)
        if series[0] not in TONES or own in found.values():
            own = next((one for one in spare if one not in found.values()), own)
        found[series] = own
    return found


def is_renorm(experiment: str) -> bool:
    return experiment.endswith("_renorm")
