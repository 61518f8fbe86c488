"""The table that a run prints when it starts: what it does, on which machine, and when it should finish."""

import time
from pathlib import Path
from typing import Any

from batch_renorm.data.workers import balance, split_evenly
from batch_renorm.running.build import Run
from batch_renorm.running.launch import World
from batch_renorm.running.screen import duration, wrapped


def opening(
    run: Run,
    world: World,
    execution: dict[str, Any],
    folder: Path,
    step: int,
    images_per_second: float | None,
) -> str:
    """The table of a run that starts at `step`; `images_per_second` is its earlier speed, None for a new run."""
    config, size, steps = run.config, run.minibatch.size, run.size.steps
    normalised = f"groups of {run.minibatch.group}" if run.evaluation.groups else "each normalised alone"
    title = f"{config['experiment']} (scale {config['scale']}, seed {config['seed']}): " + (
        f"resuming at step {step:,} of {steps:,}" if step else f"training for {steps:,} steps"
    )
    rows = {
        "images a step": f"{run.training.examples:,}: {run.size.workers} workers x {size}, {normalised}",
        "ranks": ranks(world),
        "workers a rank": workers(run, world),
        "passes a step": passes(run, world, execution["memory"]),
        "arithmetic": in_words(execution["arithmetic"]),
        "loader processes": loading_in_words(execution["loading"]),
    }
    if images_per_second:
        rows["so far"] = f"{images_per_second:,.0f} images/s"
        rows["expected finish"] = expected_finish((steps - step) * run.training.examples, images_per_second)
    width = max(map(len, rows)) + 2
    lines = [wrapped(f"  {name:<{width}}{value}", " " * width) for name, value in rows.items()]
    return "\n".join([wrapped(title), *lines, f"  {'folder':<{width}}{folder}"])  # a path stays whole


def ranks(world: World) -> str:
    if world.ranks == 1:
        return "1"
    where = f"{world.devices} on each of {world.nodes} nodes" if world.nodes > 1 else "on this machine"
    return f"{world.ranks}, {where} (started by {world.launcher})"


def workers(run: Run, world: World) -> str:
    """How many workers each rank has: '25', '7 on ranks 0-1, 6 on the others'."""
    shares = [len(part) for part in split_evenly(range(run.size.workers), world.ranks)]
    more = shares.count(shares[0])
    if more == world.ranks:
        return str(shares[0])
    first = "rank 0" if more == 1 else f"ranks 0-{more - 1}"
    return f"{shares[0]} on {first}, {shares[-1]} on the others: {balance(run.size.workers, world.ranks)}"


def passes(run: Run, world: World, memory: dict[str, Any]) -> str:
    most = memory["workers_per_pass"]
    number = run.passes(0, world.ranks, most).division.passes
    return f"{number}, of at most {most} worker{'s' * (most > 1)} ({memory['because']})"


def loading_in_words(how: dict[str, Any]) -> str:
    return f"{how['processes']} a rank ({how['because']})"


def in_words(arithmetic: dict[str, Any]) -> str:
    words = ["bfloat16 with float32 sums" if arithmetic["precision"] == "bf16" else "float32"]
    words += [f"this GPU has no {arithmetic['lacks']}"] if "lacks" in arithmetic else []
    words += ["channels last"] if arithmetic["channels_last"] else ["channels first"]
    how = arithmetic["compile"]
    words += [f"compiled for {how}" if isinstance(how, str) else "compiled"] if how else []
    words += ["deterministic"] if arithmetic["deterministic"] else []
    return ", ".join(words)


def expected_finish(images: int, images_per_second: float) -> str:
    """The time when the remaining steps finish at the speed so far, without evaluations."""
    seconds = images / images_per_second
    end = time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() + seconds))
    return f"{end}, in {duration(seconds)} and the evaluations"
