"""Progress of a run for the user: a line per evaluation and, on a terminal, a progress bar."""

import sys
import time
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from tqdm import tqdm

from batch_renorm.data.loaders import Pass
from batch_renorm.running.build import Run
from batch_renorm.running.screen import duration
from batch_renorm.training.evaluation import Evaluation

QUIET = 300.0  # seconds without a line after which a log file gets one, even without an evaluation
RECENT = 0.02  # weight of the newest step in the average step time


class TimeLeft:
    """The remaining time of a run, from the time of recent steps and of the last evaluation.

    Args:
        steps: steps of the whole run.
        evaluation: says after which steps the model is evaluated.
    """

    def __init__(self, steps: int, evaluation: Evaluation) -> None:
        self.steps, self.evaluation = steps, evaluation
        self.step_seconds: float | None = None
        self.evaluation_seconds: float | None = None
        self.counted = 0

    def count(self, step: int, seconds: float) -> None:
        """Count `step`; `seconds` include its evaluation, if it had one."""
        self.counted += 1
        if self.evaluation.due(step, self.steps):
            self.evaluation_seconds = max(0.0, seconds - (self.step_seconds or 0.0))
        elif self.counted > 1:  # the first step of a process also loads, compiles and allocates
            share = max(RECENT, 1 / (self.counted - 1))
            self.step_seconds = (1 - share) * (self.step_seconds or 0.0) + share * seconds

    def evaluations(self, step: int) -> int:
        """The number of evaluations after `step`."""
        last = self.steps // self.evaluation.every + (self.steps % self.evaluation.every > 0)
        return max(0, last - step // self.evaluation.every)

    def after(self, step: int) -> str:
        """The remaining time in words, with the number of evaluations until one is measured; empty if unknown."""
        if self.step_seconds is None:
            return ""
        seconds, evaluations = (self.steps - step) * self.step_seconds, self.evaluations(step)
        if not evaluations:
            return f"{duration(seconds)} left"
        if self.evaluation_seconds is None:
            return f"{duration(seconds)} and {evaluations} evaluation{'s' * (evaluations > 1)} left"
        return f"{duration(seconds + evaluations * self.evaluation_seconds)} left"


class Progress(Callback):
    """Prints a line per evaluation: on a terminal above a progress bar, in a file with the time and without a bar."""

    def __init__(self, run: Run) -> None:
        self.run, self.left = run, TimeLeft(run.size.steps, run.evaluation)
        self.bar: tqdm | None = None
        self.told = self.before = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.before = time.perf_counter()
        if trainer.is_global_zero and sys.stderr.isatty():
            self.bar = tqdm(
                total=self.run.size.steps, initial=trainer.global_step, dynamic_ncols=True, leave=False,
                mininterval=0.2, bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}",
            )  # fmt: skip

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Pass, batch_idx: int
    ) -> None:
        if not trainer.is_global_zero or not batch.last:
            return
        step, now = batch.step + 1, time.perf_counter()
        self.left.count(step, now - self.before)
        self.before = now
        evaluated = self.run.evaluation.due(step, self.run.size.steps)
        if self.bar is not None:
            if evaluated:
                self.bar.write(self.line(step, evaluated), file=sys.stderr)
            self.bar.set_postfix_str(", ".join(self.facts(step, False)), refresh=False)
            self.bar.update()
        elif evaluated or now - self.told > QUIET:  # the first step of a process, too
            self.told = now
            print(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {self.line(step, evaluated)}", file=sys.stderr, flush=True)

    def line(self, step: int, evaluated: bool) -> str:
        """One line: step 1,500 of 6,000: val 61.2%, loss 1.930, 1,630 images/s, 3 min left."""
        steps = f"{self.run.size.steps:,}"
        return ", ".join([f"step {step:>{len(steps)},} of {steps}", *self.facts(step, evaluated)])

    def facts(self, step: int, evaluated: bool) -> list[str]:
        latest, seconds = self.run.training.latest, self.left.step_seconds
        facts = [f"val {latest['val_top1']:.1f}%"] if evaluated else []
        facts += [f"loss {latest['loss']:.3f}"] if "loss" in latest else []
        facts += [f"{self.run.training.examples / seconds:,.0f} images/s"] if seconds else []
        left = self.left.after(step)
        return [*facts, left] if left and step < self.run.size.steps else facts

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
