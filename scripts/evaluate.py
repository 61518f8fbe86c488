"""Evaluate a checkpoint again, or a timm network with its published weights.

    python scripts/evaluate.py runs/glyphs/noniid_renorm/seed0
    python scripts/evaluate.py --timm inception_v3.tf_in1k --pretrained data.root=/path/to/imagenet

Prints the metrics in percent; for a run, also the values that it logged at that step. Images are prepared as in the
run, or as in timm's configuration of the network. Pass more options to timm.create_model with model.OPTION=VALUE, and
options of the data, in any format that a run reads, with data.OPTION=VALUE.
"""

import argparse
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from tqdm import tqdm

from batch_renorm.data.images import Images
from batch_renorm.data.kept import KeptImages
from batch_renorm.data.loaders import in_batches
from batch_renorm.errors import UserError
from batch_renorm.models.pretrained import PretrainedImages
from batch_renorm.models.timm_models import stock
from batch_renorm.records.curve import read_rows
from batch_renorm.running import checkpoints
from batch_renorm.running.build import construct, load_run
from batch_renorm.running.cli import explained
from batch_renorm.training.distance import activation_distances
from batch_renorm.training.evaluation import count, evaluate, values

OVERRIDE = re.compile(r"(model|data)\.(\w+)=(.*)", re.DOTALL)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", metavar="FOLDER", help="a run folder; or, with --timm, options of its data")
    parser.add_argument("--checkpoint", metavar="FILE", help="of the run (default: the newest), or weights")
    parser.add_argument("--labels", type=int, help="of a minibatch with batch statistics (default: as in the run)")
    parser.add_argument("--timm", metavar="NAME", help="a network of timm instead of a run")
    parser.add_argument("--pretrained", action="store_true", help="its published weights, which timm downloads")
    parser.add_argument("--batch-size", type=int, default=100, help="of a network of timm (default: 100)")
    parser.add_argument("--processes", type=int, default=0, help="loader processes (default: none besides this one)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    return parser.parse_intermixed_args(arguments)


def main(arguments: list[str]) -> None:
    options = parse(arguments)
    matches = {text: OVERRIDE.fullmatch(text) for text in options.what}
    folders = [text for text, match in matches.items() if match is None]
    given = [(match[1], match[2], match[3]) for match in matches.values() if match is not None]
    if options.timm and not folders:
        metrics, logged = evaluate_timm(options, given), None
    elif len(folders) == 1 and not given and not options.timm:
        metrics, logged = evaluate_run(Path(folders[0]).expanduser(), options)
    elif options.timm:
        raise UserError(f"--timm {options.timm} takes options of its model and data, got {folders[0]!r}")
    else:
        raise UserError("say which run: python scripts/evaluate.py runs/<scale>/<experiment>/seed<k>")
    width = max(map(len, metrics))
    for name, value in metrics.items():
        print(
            f"  {name:<{width}}  {value:.6g}" + (f"  (logged: {logged.get(name, 'not')})" if logged is not None else "")
        )


def section(given: list[tuple[str, str, str]], name: str) -> dict[str, Any]:
    """The options of model or data; values are parsed as YAML, except for a path."""
    return {key: text if key == "root" else value_of(key, text) for part, key, text in given if part == name}


def value_of(name: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"cannot read the value of {name}: {text!r}") from error


def evaluate_run(folder: Path, options: argparse.Namespace) -> tuple[dict[str, float], dict[str, str]]:
    """All metrics of a checkpoint, and the values logged at its step."""
    device, run = torch.device(options.device), load_run(folder)
    path = Path(options.checkpoint).expanduser() if options.checkpoint else checkpoints.newest_readable(folder)[0]
    if path is None:
        raise UserError(f"{folder} has no readable checkpoint")
    checkpoints.load_weights(run.training, path)
    step = checkpoints.step_of(path)
    model = run.training.inference_model(step).to(device)
    labels = options.labels or run.evaluation.labels_per_minibatch
    evaluation = replace(run.evaluation, labels_per_minibatch=labels)
    measurements = evaluation.measurements(run.source)
    metrics = evaluate(model, run.source, measurements, device, options.processes, watch=watched)
    metrics |= activation_distances(model, run.source, evaluation.as_trained(run.source), device)
    logged = {metric: f"{value:.6g}" for at, metric, value in read_rows(folder / "curve.csv") if at == step}
    print(f"{path}, step {step}")
    return metrics, logged


def evaluate_timm(options: argparse.Namespace, given: list[tuple[str, str, str]]) -> dict[str, float]:
    """Accuracy of timm's own network on all validation images."""
    name, device = options.timm, torch.device(options.device)
    if not (options.pretrained or options.checkpoint):
        raise UserError("say which weights: --pretrained for timm's, or --checkpoint FILE")
    data = {"size": 299, "root": "???"} | section(given, "data")
    pictures: Images = construct(Images, {"data": data}, "data")
    weights = {"checkpoint_path": options.checkpoint} if options.checkpoint else {"pretrained": True}
    model = stock(name, **(section(given, "model") | weights)).eval().to(device)
    classes = getattr(model, "num_classes", pictures.classes)
    if classes != pictures.classes:
        raise UserError(f"{name} knows {classes:,} classes, {data['root']} has {pictures.classes:,}")
    source = PretrainedImages(pictures, model)
    batches = in_batches(np.arange(len(source.labels("val"))), options.batch_size)
    loaded = KeptImages(source, options.processes).visit([("val", indices) for indices in batches])
    sums = count(model, source, watched(loaded, len(batches)), device)
    print(f"{name}, {int(sums['images']):,} images")
    return {f"val_{metric}": value for metric, value in values(sums).items()}


def watched(loaded: Iterable[Any], batches: int) -> Iterator[Any]:
    """The batches, with their progress on standard error."""
    quiet = not sys.stderr.isatty()  # in a log file an occasional line instead of a bar
    how = "{desc}: {n_fmt} of {total_fmt} batches, {remaining} left\n" if quiet else None
    return iter(
        tqdm(
            loaded, total=batches, desc="evaluating", unit="batch", dynamic_ncols=True, leave=False,
            mininterval=30 if quiet else 0.2, bar_format=how,
        )
    )  # fmt: skip


if __name__ == "__main__":
    with explained():
        main(sys.argv[1:])
