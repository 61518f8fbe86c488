"""What a run says of itself: a table when it starts, a line per evaluation and, on a terminal, a progress bar."""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from tqdm import tqdm

from batch_renorm.data.loaders import Pass, balance, split_evenly
from batch_renorm.running.build import Run
from batch_renorm.running.capacity import Execution
from batch_renorm.running.ranks import World
from batch_renorm.running.screen import duration, print_line, waiting, wrapped

QUIET = 300.0  # seconds without a line after which a log file gets one, even without an evaluation
LONG_EVALUATION = 60.0  # seconds between the lines of an evaluation


def opening(
    run: Run, world: World, execution: Execution, folder: Path, step: int, images_per_second: float | None
) -> str:
    """The table of a run that starts at `step`; `images_per_second` is its earlier speed, None for a new run."""
    config, size, steps, examples = run.config, run.minibatch.size, run.size.steps, run.training.examples
    normalised = f"groups of {run.minibatch.group}" if run.evaluation.groups else "each normalised alone"
    title = f"{config['experiment']} (scale {config['scale']}, seed {config['seed']}): " + (
        f"resuming at step {step:,} of {steps:,}" if step else f"training for {steps:,} steps"
    )
    where = f"{world.devices} on each of {world.nodes} nodes" if world.nodes > 1 else "on this machine"
    memory, loading = execution.memory, execution.loading
    passes = run.passes(0, world.ranks, memory.workers_per_pass).division.passes
    rows = {
        "images a step": f"{examples:,}: {run.size.workers} workers x {size}, {normalised}",
        "ranks": "1" if world.ranks == 1 else f"{world.ranks}, {where} (started by {world.launcher})",
        "workers a rank": workers(run, world),
        "passes a step": f"{passes}, of at most {memory.workers_per_pass} worker"
        f"{'s' * (memory.workers_per_pass > 1)} ({memory.because})",
        "arithmetic": in_words(execution.arithmetic),
        "loader processes": f"{loading.processes} a rank ({loading.because})",
    }
    if images_per_second:
        seconds = (steps - step) * examples / images_per_second
        end = time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() + seconds))
        rows["so far"] = f"{images_per_second:,.0f} images/s"
        rows["expected finish"] = f"{end}, in {duration(seconds)} and the evaluations"
    width = max(map(len, rows)) + 2
    lines = [wrapped(f"  {name:<{width}}{value}", " " * width) for name, value in rows.items()]
    return "\n".join([wrapped(title), *lines, f"  {'folder':<{width}}{folder}"])  # a path stays in one piece


def workers(run: Run, world: World) -> str:
    """How many workers each rank has: '25', '7 on ranks 0-1, 6 on the others'."""
    shares = [len(part) for part in split_evenly(range(run.size.workers), world.ranks)]
    more = shares.count(shares[0])
    if more == world.ranks:
        return str(shares[0])
    first = "rank 0" if more == 1 else f"ranks 0-{more - 1}"
    return f"{shares[0]} on {first}, {shares[-1]} on the others: {balance(run.size.workers, world.ranks)}"


def in_words(arithmetic: dict[str, Any]) -> str:
    words = ["bfloat16 with float32 sums" if arithmetic["precision"] == "bf16" else "float32"]
    words += [f"this GPU has no {arithmetic['lacks']}"] if "lacks" in arithmetic else []
    words += ["channels last"] if arithmetic["channels_last"] else ["channels first"]
    how = arithmetic["compile"]
    words += [f"compiled for {how}" if isinstance(how, str) else "compiled"] if how else []
    words += ["deterministic"] if arithmetic["deterministic"] else []
    return ", ".join(words)


class Progress(Callback):
    """Prints a line per evaluation: on a terminal above a bar of steps, in a file with the time and without a bar.

    Lightning's bars count passes, and a log file gets one line for each of their updates.
    """

    def __init__(self, run: Run, talkative: bool) -> None:
        self.run, self.talkative = run, talkative
        self.bar: tqdm | None = None
        self.last_line = 0.0
        self.begin: tuple[int, float] | None = None
        """A step and its end: the second of this process, since the first also loads, compiles and allocates."""
        self.first_batch = ExitStack()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.talkative:
            return
        self.first_batch.enter_context(waiting("the first images"))
        if sys.stderr is not None and sys.stderr.isatty():
            self.bar = tqdm(
                total=self.run.size.steps, initial=trainer.global_step, dynamic_ncols=True, leave=False,
                mininterval=0.2, bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}",
            )  # fmt: skip

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Pass, batch_idx: int) -> None:
        self.first_batch.close()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Pass, batch_idx: int
    ) -> None:
        if not self.talkative or not batch.last:
            return
        step, now = batch.step + 1, time.perf_counter()
        evaluated = self.run.evaluation.due(step, self.run.size.steps)
        if evaluated or (self.bar is None and now - self.last_line > QUIET):  # the first step of a process, too
            self.print(self.line(step, evaluated))
        if self.bar is not None:
            self.bar.set_postfix_str(", ".join(self.facts(step, False)), refresh=False)
            self.bar.update()
        self.begin = self.begin or (step, now)

    def print(self, line: str) -> None:
        self.last_line = time.perf_counter()
        if self.bar is not None:
            with self.bar.external_write_mode(file=sys.stderr):
                print_line(line)
        else:
            print_line(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}")

    def line(self, step: int, evaluated: bool) -> str:
        """One line: step 1,500 of 6,000, val 61.2%, loss 1.930, 1,630 images/s, 3 min left."""
        steps = f"{self.run.size.steps:,}"
        return ", ".join([f"step {step:>{len(steps)},} of {steps}", *self.facts(step, evaluated)])

    def facts(self, step: int, evaluated: bool) -> list[str]:
        latest, steps = self.run.training.latest, self.run.size.steps
        facts = [f"val {latest['val_top1']:.1f}%"] if evaluated else []
        facts += [f"loss {latest['loss']:.3f}"] if "loss" in latest else []
        facts += [f"{latest['images_per_second']:,.0f} images/s"] if "images_per_second" in latest else []
        left = self.seconds_left(step, time.perf_counter())
        return [*facts, f"{duration(left)} left"] if left is not None and step < steps else facts

    def seconds_left(self, step: int, now: float) -> float | None:
        """The remaining time at the mean speed of this process, evaluations included; None if unknown."""
        if self.begin is None or step <= self.begin[0]:
            return None
        return (self.run.size.steps - step) * (now - self.begin[1]) / (step - self.begin[0])

    def watch(self, batches: Iterable[Any], number: int) -> Iterator[Any]:
        """Pass the batches of an evaluation on; if it takes more than a minute, print a line each minute."""
        start = last = time.perf_counter()
        for done, batch in enumerate(batches):
            now = time.perf_counter()
            if self.talkative and now - last > LONG_EVALUATION:
                last = now
                left = duration((number - done) * (now - start) / done) if done else "an unknown time"
                self.print(f"evaluating, batch {done:,} of {number:,}, {left} left")
            yield batch

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.first_batch.close()
        if self.bar is not None:
            self.bar.close()
            self.bar = None
