"""The look of a curve, the same in every drawing: a hue for each norm, a tone and a mark for data and evaluation.

Batchnorm is orange and Batch Renorm blue: Okabe and Ito's pair, which colour-blind readers can distinguish. Our
GroupNorm is their green; other experiments outside the paper are purple or grey. Within a hue, tones differ in
lightness, and marks distinguish curves without colour, also in print.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from batch_renorm.reporting.paper import AS_TRAINED, BATCH_STATISTICS, NO_COUNTERPART, TRAIN, Series


@dataclass(frozen=True)
class Look:
    color: str
    mark: str = ""  # matplotlib's letter; "" is a plain line


LOOKS = {
    "iid_batchnorm": Look("#7d3200"),
    "iid_renorm": Look("#00416e", "^"),
    "micro4_batchnorm": Look("#ec7f2f", "s"),
    "micro4_renorm": Look("#3397d6", "P"),
    "noniid_batchnorm": Look("#d04f00"),
    "noniid_halves_batchnorm": Look("#b07a45", "D"),
    "noniid_renorm": Look("#0072b2", "o"),
    "iid_groupnorm": Look("#00523b", "X"),
    "micro4_groupnorm": Look("#5cb893", "*"),
    "noniid_groupnorm": Look("#009e73", "v"),
    "micro4_frozen": Look("#b06aa0", "*"),
    "noniid_frozen": Look("#7b4a9e", "v"),
}
EVALUATIONS = {  # other evaluations of noniid_batchnorm than the paper's usual one
    TRAIN: Look("#f29a55", "^"),
    BATCH_STATISTICS: Look("#8a3600", "s"),
    NO_COUNTERPART: Look("#e8b48a", "v"),
    AS_TRAINED: Look("#5e2a05", "P"),
}
OTHERS = ("#6b6b6b", "#7b4a9e", "#3d3d3d", "#b06aa0")
MARKS = ("o", "s", "^", "D", "v", "X", "P", "*", "")

INK, FAINT = "#222222", "#767676"
PAPERS_HEADING = "The paper: Inception-v3, ImageNet"


def look(series: Series) -> Look:
    """The fixed look of a known experiment; for others see `looks_of`."""
    experiment, metric = series
    return EVALUATIONS.get(metric) or LOOKS.get(experiment, Look(OTHERS[0]))


def looks_of(lines: Iterable[Series]) -> dict[Series, Look]:
    """A look for each of some curves on the same axes, all different as long as there are enough looks."""
    looks: dict[Series, Look] = {}
    spare = [Look(color, mark) for mark in MARKS for color in OTHERS]
    for series in lines:
        fixed = look(series)
        if series[0] not in LOOKS or fixed in looks.values():
            fixed = next((one for one in spare if one not in looks.values()), fixed)
        looks[series] = fixed
    return looks


def ours_heading(scale: str) -> str:
    """The title of our panel; a long name of a scale leaves no room to say how seeds are shown."""
    return f"Ours: {scale}" + ", mean and range over seeds" * (len(scale) <= 11)
