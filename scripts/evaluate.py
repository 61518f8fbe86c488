"""Evaluate a checkpoint again, or a timm network with its published weights.

    python scripts/evaluate.py runs/glyphs/noniid_renorm/seed0
    python scripts/evaluate.py runs/imagenet/noniid_renorm/seed0 data.root=/path/to/imagenetv2
    python scripts/evaluate.py --timm inception_v3.tf_in1k --pretrained data.root=/path/to/imagenet

Prints the metrics in percent; for a run on its own images, also the values that it logged at that step. Images are
prepared as in the run, or as in timm's configuration of the network. Pass more options to timm.create_model with
model.OPTION=VALUE. Options of the data, data.OPTION=VALUE, may name validation images alone, in any format that a run
reads; data.class_list=FILE has the class of each label, one a line, where the folders' sorted names are in another
order.
"""

import argparse
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import nn

from batch_renorm.data.images import Images
from batch_renorm.data.loaders import Batches, in_batches, loader
from batch_renorm.errors import UserError
from batch_renorm.models.pretrained import PretrainedImages
from batch_renorm.models.timm_models import stock
from batch_renorm.records.curve import read_rows
from batch_renorm.running.build import Run
from batch_renorm.running.checkpoints import step_of, trained_model
from batch_renorm.running.cli import explained
from batch_renorm.running.schema import checked
from batch_renorm.training.distance import activation_distances
from batch_renorm.training.evaluation import count, evaluate, values, watched

OVERRIDE = re.compile(r"(model|data)\.(\w+)=(.*)", re.DOTALL)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "what", nargs="*", metavar="FOLDER", help="a run folder; options of its data, or of timm's network"
    )
    parser.add_argument("--checkpoint", metavar="FILE", help="of the run (default: the newest), or weights")
    parser.add_argument("--labels", type=int, help="of a minibatch with batch statistics (default: as in the run)")
    parser.add_argument("--timm", metavar="NAME", help="a network of timm instead of a run")
    parser.add_argument("--pretrained", action="store_true", help="its published weights, which timm downloads")
    parser.add_argument(
        "--batch-size", type=int, default=100, help="images a batch, on data of your own (default: 100)"
    )
    parser.add_argument("--processes", type=int, default=0, help="loader processes (default: none besides this one)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    return parser.parse_intermixed_args(arguments)


def main(arguments: list[str]) -> None:
    options = parse(arguments)
    matches = {text: OVERRIDE.fullmatch(text) for text in options.what}
    folders = [text for text, match in matches.items() if match is None]
    given = [(match[1], match[2], match[3]) for match in matches.values() if match is not None]
    logged: dict[str, str] | None = None
    if options.timm and not folders:
        metrics = evaluate_timm(options, given)
    elif options.timm or len(folders) != 1 or any(part == "model" for part, *_ in given):
        raise UserError(
            "say which run: python scripts/evaluate.py runs/<scale>/<experiment>/seed<k> [data.root=IMAGES]; "
            "or which network: --timm NAME --pretrained data.root=IMAGES [model.OPTION=VALUE]"
        )
    else:
        folder = Path(folders[0]).expanduser()
        run, model, path = trained_model(folder, Path(options.checkpoint).expanduser() if options.checkpoint else None)
        model, step = model.to(options.device), step_of(path)
        print(f"{path}, step {step}")
        if given:
            metrics = evaluate_elsewhere(run, model, options, given)
        else:
            metrics = evaluate_run(run, model, options)
            logged = {metric: f"{value:.6g}" for at, metric, value in read_rows(folder / "curve.csv") if at == step}
    width = max(map(len, metrics))
    for name, value in metrics.items():
        print(
            f"  {name:<{width}}  {value:.6g}" + (f"  (logged: {logged.get(name, 'not')})" if logged is not None else "")
        )


def section(given: list[tuple[str, str, str]], name: str) -> dict[str, Any]:
    """The options of model or data; values are parsed as YAML, except for paths."""
    return {
        key: text if key in ("root", "class_list") else value_of(key, text) for part, key, text in given if part == name
    }


def value_of(name: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"cannot read the value of {name}: {text!r}") from error


def evaluate_run(run: Run, model: nn.Module, options: argparse.Namespace) -> dict[str, float]:
    """All metrics, on the run's images."""
    device, labels = torch.device(options.device), options.labels or run.evaluation.labels_per_minibatch
    evaluation = replace(run.evaluation, labels_per_minibatch=labels)
    measurements = evaluation.measurements(run.source)
    metrics = evaluate(model, run.source, measurements, device, options.processes, watch=watched)
    return metrics | activation_distances(model, run.source, evaluation.as_trained(run.source), device)


def evaluate_elsewhere(
    run: Run, model: nn.Module, options: argparse.Namespace, given: list[tuple[str, str, str]]
) -> dict[str, float]:
    """Accuracy on all validation images of another data set with the run's labels."""
    images = validation_images({"size": run.source.size} | section(given, "data"))
    if images.classes != run.source.classes:
        raise UserError(f"the run knows {run.source.classes:,} classes, data.root has {images.classes:,}")
    return accuracy(model, images, options)


def evaluate_timm(options: argparse.Namespace, given: list[tuple[str, str, str]]) -> dict[str, float]:
    """Accuracy of timm's own network on all validation images."""
    name = options.timm
    if not (options.pretrained or options.checkpoint):
        raise UserError("say which weights: --pretrained for timm's, or --checkpoint FILE")
    images = validation_images({"size": 299, "root": "???"} | section(given, "data"))
    weights = {"checkpoint_path": options.checkpoint} if options.checkpoint else {"pretrained": True}
    model = stock(name, **(section(given, "model") | weights)).eval().to(options.device)
    classes = getattr(model, "num_classes", images.classes)
    if classes != images.classes:
        raise UserError(f"{name} knows {classes:,} classes, data.root has {images.classes:,}")
    print(f"{name}, ", end="")
    return accuracy(model, PretrainedImages(images, model), options)


def validation_images(data: dict[str, Any]) -> Images:
    """Validation images alone: a root needs no training images."""
    return Images(**checked(Images, {"splits": ["val"]} | data, "data"))


def accuracy(model: nn.Module, source: Any, options: argparse.Namespace) -> dict[str, float]:
    batches = in_batches(np.arange(len(source.labels("val"))), options.batch_size)
    loaded = loader(Batches(source, [("val", indices) for indices in batches]), options.processes)
    sums = count(model, source, watched(loaded), torch.device(options.device))
    print(f"{int(sums['images']):,} images")
    return {f"val_{metric}": value for metric, value in values(sums).items()}


if __name__ == "__main__":
    with explained():
        main(sys.argv[1:])
