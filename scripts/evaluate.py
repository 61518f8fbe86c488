"""Evaluate a checkpoint again, or a network of timm with its published weights.

    python scripts/evaluate.py run=runs/glyphs/noniid_renorm/seed0
    python scripts/evaluate.py model=timm model.name=inception_v3.tf_in1k pretrained=true data.root=/path/to/imagenet

    run=FOLDER           a run folder; its newest readable checkpoint, unless
    checkpoint=FILE      one of its checkpoints is named
    labels=N             labels of a minibatch in the evaluation with batch statistics; default: as in the run

    model=timm           a network of timm, its images prepared as timm's configuration of it says:
    model.name=NAME      which; more options for timm.create_model as model.OPTION=VALUE
    pretrained=true      timm's weights, which timm downloads, or
    checkpoint=FILE      weights in a file, for instance from scripts/export.py
    data.root=FOLDER     ImageNet in any of the formats that a run reads; other options of data as data.OPTION=VALUE
    batch_size=N         default: 100

    processes=N          loader processes
    device=cpu|cuda      default: a GPU where there is one

Prints the metrics in percent; of a run, beside what it logged at that step.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from batch_renorm.data.images import Images
from batch_renorm.data.kept import KeptImages
from batch_renorm.data.loaders import in_batches
from batch_renorm.models.pretrained import PretrainedImages
from batch_renorm.models.timm_models import stock
from batch_renorm.training import checkpoints
from batch_renorm.training.build import construct, load, near
from batch_renorm.training.cli import explained
from batch_renorm.training.curve import read_rows
from batch_renorm.training.distance import activation_distances
from batch_renorm.training.evaluation import count_correct, evaluate

PATHS = ("run", "checkpoint", "data.root")
OPTIONS: dict[str, Any] = {
    "run": "", "checkpoint": "", "labels": 0, "processes": 0, "device": "cuda" if torch.cuda.is_available() else "cpu",
    "model": "", "pretrained": False, "batch_size": 100,
}  # fmt: skip


def main(arguments: list[str]) -> None:
    options = OPTIONS | parsed(arguments)
    for name in options:
        if name not in OPTIONS and name.partition(".")[0] not in ("model", "data"):
            raise ValueError(f"no option {name}{near(str(name), OPTIONS)}")
    if options["model"] == "timm":
        metrics, logged = evaluate_timm(options), None
    elif options["model"]:
        raise ValueError(f"model={options['model']}: only model=timm has pretrained weights; a run is run=FOLDER")
    elif options["run"]:
        metrics, logged = evaluate_run(options)
    else:
        raise ValueError("say which run: python scripts/evaluate.py run=runs/<scale>/<experiment>/seed<k>")
    width = max(map(len, metrics))
    for name, value in metrics.items():
        print(
            f"  {name:<{width}}  {value:.6g}" + (f"  (logged: {logged.get(name, 'not')})" if logged is not None else "")
        )


def parsed(arguments: list[str]) -> dict[str, Any]:
    pairs = [argument.partition("=") for argument in arguments]
    wrong = next((name for name, equals, _ in pairs if not equals), None)
    if wrong is not None:
        raise ValueError(f"options are name=value, got {wrong!r}")
    return {name: value if name in PATHS else value_of(name, value) for name, _, value in pairs}


def value_of(name: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"cannot read the value of {name}: {text!r}") from error


def section(options: dict[str, Any], name: str) -> dict[str, Any]:
    return {key.removeprefix(f"{name}."): value for key, value in options.items() if key.startswith(f"{name}.")}


def evaluate_run(options: dict[str, Any]) -> tuple[dict[str, float], dict[str, str]]:
    """All metrics of a checkpoint, and what was logged then."""
    folder, device = Path(str(options["run"])).expanduser(), torch.device(options["device"])
    run = load(folder)
    path = Path(options["checkpoint"]).expanduser() if options["checkpoint"] else checkpoints.newest_readable(folder)[0]
    if path is None:
        raise ValueError(f"{folder} has no readable checkpoint")
    checkpoints.load_weights(run.training, path)
    step = checkpoints.step_of(path)
    model = run.training.inference_model(step).to(device)
    labels = options["labels"] or run.evaluation.labels_per_minibatch
    evaluation = replace(run.evaluation, labels_per_minibatch=labels)
    metrics = evaluate(model, run.source, evaluation, device, options["processes"])
    metrics |= activation_distances(model, run.source, evaluation.as_trained(run.source), device)
    logged = {metric: f"{value:.6g}" for at, metric, value in read_rows(folder / "curve.csv") if at == step}
    print(f"{path}, step {step}")
    return metrics, logged


def evaluate_timm(options: dict[str, Any]) -> dict[str, float]:
    """Accuracy of timm's own network on all validation images."""
    given = section(options, "model")
    name, device = given.pop("name", None), torch.device(options["device"])
    if name is None:
        raise ValueError("say which network: model.name=inception_v3.tf_in1k")
    if not (options["pretrained"] or options["checkpoint"]):
        raise ValueError("say which weights: pretrained=true for timm's, or checkpoint=FILE")
    data = {"size": 299, "root": "???"} | section(options, "data")
    pictures: Images = construct(Images, {"data": data}, "data")
    weights = {"checkpoint_path": options["checkpoint"]} if options["checkpoint"] else {"pretrained": True}
    model = stock(name, **(given | weights)).eval().to(device)
    classes = getattr(model, "num_classes", pictures.classes)
    if classes != pictures.classes:
        raise ValueError(f"{name} knows {classes:,} classes, {data['root']} has {pictures.classes:,}")
    source = PretrainedImages(pictures, model)
    batches = in_batches(np.arange(len(source.labels("val"))), options["batch_size"])
    loaded = KeptImages(source, options["processes"]).visit([("val", indices) for indices in batches])
    images, top1, top5 = count_correct(model, source, loaded, device).tolist()
    print(f"{name}, {images:,} images")
    return {"val_top1": 100 * top1 / images, "val_top5": 100 * top5 / images}


if __name__ == "__main__":
    with explained():
        main(sys.argv[1:])
