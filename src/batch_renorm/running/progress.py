"""What a run says of itself: a table, a line per evaluation, on a terminal one of the last step, and the result."""

import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from tqdm import tqdm

from batch_renorm.data.loaders import Pass, split_evenly
from batch_renorm.errors import UserError
from batch_renorm.records import curve
from batch_renorm.records.folder import Folder
from batch_renorm.running.build import Run
from batch_renorm.running.capacity import Execution
from batch_renorm.running.ranks import World
from batch_renorm.screen import print_line, waiting, wrapped

QUIET = 300.0  # seconds without a line after which a log file gets one, even without an evaluation
OFTEN = 0.2  # seconds between two forms of a terminal's line
CLEAR = "\x1b[K"  # a terminal's line, from here to its end
OTHERS = {
    "val_top5": "top-5", "train_top1": "on training images", "val_top1_batch_statistics": "with batch statistics",
}  # fmt: skip


def opening(run: Run, world: World, execution: Execution, folder: Path, step: int) -> str:
    """The table of a run that starts at `step`."""
    config, steps, examples = run.config, run.size.steps, run.training.examples
    memory, loading = execution.memory, execution.loading
    begin = f"resuming at step {step:,} of {steps:,}" if step else f"training for {steps:,} steps"
    title = f"{config['experiment']} (scale {config['scale']}, seed {config['seed']}): {begin}"
    normalised = f"groups of {run.minibatch.group}" if run.evaluation.groups else "each normalised alone"
    where = f"{world.devices} on each of {world.nodes} nodes" if world.nodes > 1 else "on this machine"
    passes = run.passes(0, world.ranks, memory.workers_per_pass).division.passes
    shares = [len(part) for part in split_evenly(range(run.size.workers), world.ranks)]
    of_a_rank = str(shares[0])
    if shares[0] != shares[-1]:
        of_a_rank += f" or {shares[-1]}: numbers of ranks that divide {run.size.workers} keep all of them busy"
    most = f"{memory.workers_per_pass} worker{'s' * (memory.workers_per_pass > 1)}"
    rows = {
        "images a step": f"{examples:,}: {run.size.workers} workers x {run.minibatch.size}, {normalised}",
        "ranks": "1" if world.ranks == 1 else f"{world.ranks}, {where} (started by {world.launcher})",
        "workers a rank": of_a_rank,
        "passes a step": f"{passes}, of at most {most} ({memory.because})",
        "arithmetic": ", ".join(f"{name} {value}" for name, value in execution.arithmetic.items()),
        "loader processes": f"{loading.processes} a rank ({loading.because})",
    }
    width = max(map(len, rows)) + 2
    lines = [wrapped(f"  {name:<{width}}{value}", " " * width) for name, value in rows.items()]
    return "\n".join([wrapped(title), *lines, f"  {'folder':<{width}}{folder}"])  # a path stays in one piece


class Progress(Callback):
    """Prints a line per evaluation, in a file with the time; on a terminal also a line that every step writes again.

    Lightning's bars count passes, and a log file gets one line for each of their updates.
    """

    def __init__(self, run: Run, talkative: bool) -> None:
        self.run, self.talkative = run, talkative
        self.terminal = talkative and sys.stderr is not None and sys.stderr.isatty()
        self.last_line = 0.0
        self.begin: tuple[int, float] | None = None
        """A step and its end: the second of this process, since the first also loads, compiles and allocates."""
        self.until_first_batch = ExitStack()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.talkative:
            self.until_first_batch.enter_context(waiting("the first images"))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Pass, batch_idx: int) -> None:
        self.until_first_batch.close()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Pass, batch_idx: int
    ) -> None:
        if not self.talkative or not batch.last:
            return
        step, now = batch.step + 1, time.perf_counter()
        evaluated = self.run.evaluation.due(step, self.run.size.steps)
        if evaluated or now - self.last_line > (OFTEN if self.terminal else QUIET):  # the first step of a process, too
            self.last_line, line = now, self.line(step, evaluated, now)
            if self.terminal:
                print_line(f"\r{CLEAR}{line}", end="\n" if evaluated else "")
            else:
                print_line(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}")
        self.begin = self.begin or (step, now)

    def line(self, step: int, evaluated: bool, now: float) -> str:
        """One line: step 1,500 of 6,000, val 61.2%, loss 1.930, 1,630 images/s, 03:10 left."""
        latest, steps, left = self.run.training.latest, f"{self.run.size.steps:,}", self.seconds_left(step, now)
        facts = [f"step {step:>{len(steps)},} of {steps}"]
        facts += [f"val {latest['val_top1']:.1f}%"] if evaluated else []
        facts += [f"loss {latest['loss']:.3f}"] if "loss" in latest else []
        facts += [f"{latest['images_per_second']:,.0f} images/s"] if "images_per_second" in latest else []
        return ", ".join(facts + ([f"{tqdm.format_interval(left)} left"] if left else []))

    def seconds_left(self, step: int, now: float) -> float | None:
        """The remaining time at the mean speed of this process, evaluations included; None if unknown."""
        if self.begin is None or step <= self.begin[0]:
            return None
        return (self.run.size.steps - step) * (now - self.begin[1]) / (step - self.begin[0])

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.until_first_batch.close()


def summary(folder: Folder) -> str:
    """Final and best accuracy of a finished run, the place of its files, and the command that draws them.

    Raises:
        UserError: the curve is missing or has no accuracy.
    """
    final = {metric: value for _, metric, value in curve.read_rows(folder.curve)}
    if not (points := curve.accuracies(folder.curve)):
        raise UserError(f"{folder.path} is a finished run, but {folder.curve} has no val_top1; fresh=true repeats it")
    best = max(points, key=points.__getitem__)
    lines = [
        f"validation top-1 {final['val_top1']:.1f}% at the end, {points[best]:.1f}% at best (step {best:,})",
        ", ".join(f"{name} {final[metric]:.1f}%" for metric, name in OTHERS.items() if metric in final),
        f"{folder.record().get('wall_seconds', 0) / 60:.1f} minutes; curve, config, checkpoints: {folder.path}",
        "figures and table: python scripts/report.py",
    ]
    if {"seconds_wait", "seconds_step"} <= final.keys():
        wait, whole = final["seconds_wait"], final["seconds_wait"] + final["seconds_step"]
        lines.insert(2, f"a step takes {whole:.3g} s, of which {wait / whole:.0%} waits for images")
    return "\n  ".join(filter(None, lines))
