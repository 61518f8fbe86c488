"""Steps and evaluations of the paper's Inception-v3 on a GPU without data (`fake_gpu.py`)."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from batch_renorm.data.images import Fetched, Images
from batch_renorm.data.loaders import Pass, SentAhead
from batch_renorm.models.timm_models import create
from batch_renorm.norm import BatchRenorm2d, Ramp
from batch_renorm.training.loss import Loss
from batch_renorm.training.module import Training
from batch_renorm.training.optimizer import Optimization, RMSProp
from benchmarks.fake_gpu import CUDA, Count, Counting, backward, fake_cuda

STEPS = 140_000
OPTIMIZATION = Optimization(
    lr=0.045, lr_decay=0.94, lr_decay_steps=1601, weight_decay=4e-5, clip_norm=2.0,
    make=partial(RMSProp, decay=0.9, momentum=0.9, eps=1.0),
)  # fmt: skip


class NoImages(Images):
    """Fake images of the right shapes."""

    def __init__(self, size: int, classes: int, images: int) -> None:
        self.size, self.classes, self.on_error = size, classes, "fail"
        self.every_label = np.arange(images) % classes

    def labels(self, split: str) -> np.ndarray:
        return self.every_label

    def fetch(self, split: str, indices: np.ndarray, draw: Any) -> Fetched:
        return Fetched(torch.empty(len(indices), 3, self.size, self.size, dtype=torch.uint8), None)


class FakeTraining:
    """A run's module on one of `ranks` ranks; `start` moves it to the fake GPU."""

    def __init__(self, size: int, group: int, ranks: int, bf16: bool, images: int = 2000) -> None:
        self.rows: list[dict[str, float]] = []
        self.source = NoImages(size, 1000, images)
        norm = partial(
            BatchRenorm2d, eps=1e-3, momentum=0.01, averages="sigma", group_size=group, scale=False, rmax=1.0, dmax=0.0
        )
        model = create("inception_v3", 1000, 3, norm, aux_logits=True)
        self.module = Training(
            model, self.source, Loss(0.1, 0.4), OPTIMIZATION, Ramp(5000, 40000, 25000), 0.9999, 1600, 50, bf16=bf16
        )
        self.module._trainer = SimpleNamespace(  # type: ignore[assignment]
            world_size=ranks, global_step=0, max_steps=STEPS, loggers=[SimpleNamespace(log_metrics=self._log)],
            strategy=SimpleNamespace(block_backward_sync=nothing),
        )  # fmt: skip

    def start(self) -> None:
        self.module.to(CUDA)
        optimizer = OPTIMIZATION.optimizer(self.module.model)
        for group in optimizer.param_groups:
            group.update(
                {"foreach": True} if group.get("foreach", True) is None else {}
            )  # as for real parameters on the device
        self.module.optimizers = lambda *_: optimizer  # type: ignore
        self.module.manual_backward = backward  # type: ignore[method-assign]

    def _log(self, row: dict[str, float], step: int) -> None:
        self.rows.append(row)

    def step(self, step: int, passes: list[int]) -> Count:
        """What reaches the device in a step; `passes` are the numbers of images in its passes."""
        counting = Counting()
        with counting as count:
            for batch in SentAhead(list(self._passes(step, passes)), CUDA):
                self.module.training_step(batch, 0)
        return count

    def _passes(self, step: int, passes: list[int]) -> Iterator[Pass]:
        for number, images in enumerate(passes, 1):
            pixels = torch.empty(images, 3, self.source.size, self.source.size, dtype=torch.uint8)
            fetched = Fetched(pixels, torch.empty(images, 5))
            labels = torch.zeros(images, dtype=torch.int64)
            yield Pass(step, number == len(passes), [fetched], labels).pin_memory()


@contextmanager
def nothing() -> Iterator[None]:
    yield


@contextmanager
def on_fake_cuda(size: int = 299, group: int = 32, ranks: int = 8, bf16: bool = True) -> Iterator[FakeTraining]:
    fake = FakeTraining(size, group, ranks, bf16)
    with fake_cuda():
        fake.start()
        yield fake


def strays(module: torch.nn.Module) -> list[str]:
    """Names of tensors of a module, including attributes of its parts, that are not on the device."""
    found = []
    for name, part in module.named_modules():
        for key, value in {**vars(part), **part._parameters, **part._buffers}.items():
            if isinstance(value, Tensor) and value.device != CUDA:
                found.append(f"{name}.{key} on {value.device}")
    return found
