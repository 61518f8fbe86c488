"""Measure what batchnorm's groups tell a trained network, and how it uses this: figures/<scale>/mechanism.png.

    python scripts/mechanism.py runs/glyphs/*/seed0      writes mechanism.csv into each run folder
    python scripts/report.py                             draws them

For runs on the embedded data set, whose images show two letters; uses each run's newest readable checkpoint.
"""

import argparse
import csv
from pathlib import Path

from batch_renorm.data.glyphs import Glyphs
from batch_renorm.errors import UserError
from batch_renorm.norm.layers import has_layers
from batch_renorm.running.checkpoints import trained_model
from batch_renorm.running.cli import explained
from batch_renorm.training.mechanism import Row, measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="FOLDER", help="run folders")
    parser.add_argument("--images", type=int, default=1000, help="validation images to look at (default: 1000)")
    options = parser.parse_args()
    for folder in options.runs:
        run, model, _ = trained_model(folder)
        if not isinstance(run.source, Glyphs):
            raise UserError(f"{folder} has no images of letters: the mechanism is measured on the embedded data set")
        if not has_layers(model):
            print(f"{folder}: no layer reads the group, so there is nothing to measure")
            continue
        rows = measure(model, run.source, run.minibatch.group, images=options.images)
        with (folder / "mechanism.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(Row._fields)
            writer.writerows(
                (r.measure, r.at, f"{r.value:.6g}", "" if r.theory is None else f"{r.theory:.6g}") for r in rows
            )
        print(folder / "mechanism.csv")
        for row in rows:
            print(f"  {row.measure} {row.at}: {row.value:.4g}")


if __name__ == "__main__":
    with explained():
        main()
