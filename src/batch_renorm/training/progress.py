"""What a person sees while a run trains: one line with step, loss, speed, accuracy and time left."""

import sys
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from tqdm import tqdm

from batch_renorm.data.loaders import Pass


class Progress(Callback):
    """A progress bar over steps; where output is not a terminal, a line every half minute."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.bar: tqdm | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            terminal = sys.stderr.isatty()
            self.bar = tqdm(
                total=self.steps, initial=trainer.global_step, unit="step", dynamic_ncols=True,
                mininterval=0.2 if terminal else 30, bar_format=None if terminal else "{l_bar}{r_bar}\n",
            )  # fmt: skip

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Pass, batch_idx: int
    ) -> None:
        if self.bar is None or not batch.last:
            return
        self.bar.update()
        latest: dict[str, float] = pl_module.latest  # type: ignore[assignment]
        if "loss" in latest:
            text = f"loss {latest['loss']:.3f}, {latest['images_per_second']:,.0f} images/s"
            if "val_top1" in latest:
                text += f", val {latest['val_top1']:.1f}%"
            self.bar.set_postfix_str(text, refresh=False)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
