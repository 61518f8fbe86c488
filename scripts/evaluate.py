"""Evaluate a checkpoint again: `python scripts/evaluate.py run=runs/glyphs/noniid_renorm/seed0`.

    run=FOLDER           a run folder; its newest readable checkpoint, unless
    checkpoint=FILE      one of its checkpoints is named
    labels=N             labels of a minibatch in the evaluation with batch statistics; default: as in the run
    processes=N          loader processes
    device=cpu|cuda      default: a GPU where there is one

Prints the metrics in percent, beside what the run logged at that step.
"""

import csv
import sys
from dataclasses import replace
from pathlib import Path

import torch
from omegaconf import OmegaConf

from batch_renorm.training import checkpoints
from batch_renorm.training.build import load, near
from batch_renorm.training.cli import explained
from batch_renorm.training.distance import activation_distances
from batch_renorm.training.evaluation import evaluate

OPTIONS = {
    "run": "",
    "checkpoint": "",
    "labels": 0,
    "processes": 0,
    "device": "cuda" if torch.cuda.is_available() else "cpu",
}


def main(arguments: list[str]) -> None:
    options = OPTIONS | dict(OmegaConf.from_dotlist(arguments))
    for name in options:
        if name not in OPTIONS:
            raise ValueError(f"no option {name}{near(str(name), OPTIONS)}")
    if not options["run"]:
        raise ValueError("say which run: python scripts/evaluate.py run=runs/<scale>/<experiment>/seed<k>")
    folder, device = Path(options["run"]), torch.device(options["device"])
    run = load(folder)
    path = Path(options["checkpoint"]) if options["checkpoint"] else checkpoints.newest_readable(folder)[0]
    if path is None or not checkpoints.readable(path):
        raise ValueError(f"{path or folder} has no readable checkpoint")
    run.training.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["state_dict"])
    step = checkpoints.step_of(path)
    model = run.training.inference_model(step).to(device)
    labels = options["labels"] or run.evaluation.labels_per_minibatch
    evaluation = replace(run.evaluation, labels_per_minibatch=labels)
    metrics = evaluate(model, run.source, evaluation, device, options["processes"])
    metrics |= activation_distances(model, run.source, evaluation.as_trained(run.source), device)
    with (folder / "curve.csv").open() as file:
        logged = {row["metric"]: row["value"] for row in csv.DictReader(file) if int(row["step"]) == step}
    print(f"{path}, step {step}")
    width = max(map(len, metrics))
    for name, value in metrics.items():
        print(f"  {name:<{width}}  {value:.6g}  (logged: {logged.get(name, 'not')})")


if __name__ == "__main__":
    with explained():
        main(sys.argv[1:])
