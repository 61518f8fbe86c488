"""Evaluate a checkpoint again, on the run's images or on others.

    python scripts/evaluate.py runs/glyphs/noniid_renorm/seed0
    python scripts/evaluate.py runs/imagenet/noniid_renorm/seed0 data.root=/path/to/imagenetv2

Prints the metrics in percent; on the run's own images, also the values that it logged at that step. Options of other
images, data.OPTION=VALUE, may name validation images alone, in any format that a run reads; data.class_list=FILE has
the class of each label, one a line, where the folders' sorted names are in another order.
"""

import argparse
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import nn

from batch_renorm.data.images import Images
from batch_renorm.data.loaders import Batches, in_batches, loader
from batch_renorm.errors import UserError
from batch_renorm.records.curve import read_rows
from batch_renorm.running.build import Run
from batch_renorm.running.checkpoints import step_of, trained_model
from batch_renorm.running.cli import explained
from batch_renorm.running.schema import checked
from batch_renorm.training.distance import activation_distances
from batch_renorm.training.evaluation import count, evaluate, values, watched


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("what", nargs="*", metavar="FOLDER", help="a run folder; options of other images")
    add("--checkpoint", type=Path, metavar="FILE", help="of the run (default: the newest)")
    add("--batch-size", type=int, default=100, help="images a batch, on other images (default: 100)")
    add("--processes", type=int, default=0, help="loader processes (default: none besides this one)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    options = parser.parse_intermixed_args()
    given, folders = {}, []
    for text in options.what:
        if match := re.fullmatch(r"data\.(\w+)=(.*)", text, re.DOTALL):
            given[match[1]] = value_of(match[1], match[2])
        else:
            folders.append(Path(text))
    if len(folders) != 1:
        raise UserError(
            "say which run: python scripts/evaluate.py runs/<scale>/<experiment>/seed<k> [data.root=IMAGES]"
        )
    run, model, path = trained_model(folders[0], options.checkpoint)
    model, step = model.to(options.device), step_of(path)
    print(f"{path}, step {step}")
    metrics = evaluate_elsewhere(run, model, options, given) if given else evaluate_run(run, model, options)
    logged = {metric: f"{value:.6g}" for at, metric, value in read_rows(folders[0] / "curve.csv") if at == step}
    width = max(map(len, metrics))
    for name, value in metrics.items():
        then = "" if given else f"  (logged: {logged.get(name, 'not')})"
        print(f"  {name:<{width}}  {value:.6g}{then}")


def value_of(name: str, text: str) -> Any:
    """The value of an option of the data: YAML, or a path."""
    try:
        return text if name in ("root", "class_list") else yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"cannot read the value of {name}: {text!r}") from error


def evaluate_run(run: Run, model: nn.Module, options: argparse.Namespace) -> dict[str, float]:
    """All metrics, on the run's images."""
    device, measurements = torch.device(options.device), run.evaluation.measurements(run.source)
    metrics = evaluate(model, run.source, measurements, device, options.processes, watch=watched)
    return metrics | activation_distances(model, run.source, run.evaluation.as_trained(run.source), device)


def evaluate_elsewhere(
    run: Run, model: nn.Module, options: argparse.Namespace, given: dict[str, Any]
) -> dict[str, float]:
    """Accuracy on all validation images of another data set with the run's labels."""
    images = Images(**checked(Images, {"size": run.source.size, "splits": ["val"]} | given, "data"))
    if images.classes != run.source.classes:
        raise UserError(f"the run knows {run.source.classes:,} classes, data.root has {images.classes:,}")
    batches = in_batches(np.arange(len(images.labels("val"))), options.batch_size)
    loaded = loader(Batches(images, [("val", indices) for indices in batches]), options.processes)
    sums = count(model, images, watched(loaded), torch.device(options.device))
    print(f"{int(sums['images']):,} images")
    return {f"val_{metric}": value for metric, value in values(sums).items()}


if __name__ == "__main__":
    with explained():
        main()
