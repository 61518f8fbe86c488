"""What a person reads when a run starts: what will happen, on what, and when it should be done."""

import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from batch_renorm.data.workers import balance, split_evenly
from batch_renorm.training.build import Run
from batch_renorm.training.launch import Place


def opening(
    run: Run, place: Place, stated: dict[str, Any], folder: Path, step: int, images_per_second: float | None
) -> Table:
    """A table of the run as it starts at `step`; the speed is that of its earlier part, None before there is any."""
    config, size, steps = run.config, run.config["minibatch"]["size"], run.size.steps
    normalised = f"groups of {config['minibatch']['group']}" if run.evaluation.groups else "each normalised alone"
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0), title_justify="left")
    table.title = f"{config['experiment']} (scale {config['scale']}, seed {config['seed']}): " + (
        f"resuming at step {step:,} of {steps:,}" if step else f"training for {steps:,} steps"
    )
    table.title_style = "bold"
    for name, value in (
        ("examples a step", f"{run.training.examples:,}: {run.size.workers} workers x {size} images, {normalised}"),
        ("ranks", ranks(place)),
        ("workers a rank", workers(run, place)),
        ("passes a step", passes(run, place, stated["memory"])),
        ("arithmetic", in_words(stated["arithmetic"])),
        ("loader processes", loading(stated["loading"])),
        ("images/s so far", f"{images_per_second:,.0f}" if images_per_second else "not measured yet"),
        ("expected finish", finish((steps - step) * run.training.examples, images_per_second)),
        ("folder", str(folder)),
    ):  # fmt: skip
        table.add_row(name, value)
    return table


def ranks(place: Place) -> str:
    if place.ranks == 1:
        return "1"
    where = f"{place.devices} on each of {place.nodes} nodes" if place.nodes > 1 else "on this machine"
    return f"{place.ranks}, {where} (started by {place.launcher})"


def workers(run: Run, place: Place) -> str:
    """How many workers each rank has: '25', '7 on ranks 0-1, 6 on the others'."""
    shares = [len(part) for part in split_evenly(range(run.size.workers), place.ranks)]
    more = shares.count(shares[0])
    if more == place.ranks:
        return str(shares[0])
    first = "rank 0" if more == 1 else f"ranks 0-{more - 1}"
    return f"{shares[0]} on {first}, {shares[-1]} on the others: {balance(run.size.workers, place.ranks)}"


def passes(run: Run, place: Place, memory: dict[str, Any]) -> str:
    number, most = run.passes(0, place.ranks, memory["workers_per_pass"]).division.passes, memory["workers_per_pass"]
    return f"{number}, of at most {most} worker{'s' * (most > 1)} ({memory['because']})"


def loading(how: dict[str, Any]) -> str:
    return f"{how['processes']} a rank ({how['because']})"


def in_words(arithmetic: dict[str, Any]) -> str:
    words = ["bfloat16 with float32 sums" if arithmetic["precision"] == "bf16" else "float32"]
    words += [f"this GPU has no {arithmetic['lacks']}"] if "lacks" in arithmetic else []
    words += ["channels last"] if arithmetic["channels_last"] else ["channels first"]
    how = arithmetic["compile"]
    words += [f"compiled for {how}" if isinstance(how, str) else "compiled"] if how else []
    words += ["deterministic"] if arithmetic["deterministic"] else []
    return ", ".join(words)


def finish(images: int, images_per_second: float | None) -> str:
    """When the remaining steps are done at the speed so far, evaluations not counted."""
    if not images_per_second:
        return "shown in the progress line as it trains"
    seconds = images / images_per_second
    end = time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() + seconds))
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{end}, in {hours} h {minutes} min without evaluations"


def show(table: Table) -> None:
    Console(file=sys.stderr, width=None if sys.stderr.isatty() else 120, highlight=False).print(table)
