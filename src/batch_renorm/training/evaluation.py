"""Accuracy of the inference model, as the paper measures it.

Metrics are percentages (METRICS can have others), named as in results/paper/curves.csv; docs/running.md lists them. The
paper evaluates on minibatches of 25 labels x 2 images with their own statistics (section 4.3), and suspects that the
model "learns to predict labels for images that come in a set": val_top1_no_counterpart is the accuracy without a set.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from pydantic import PositiveInt
from torch import Tensor, nn
from tqdm import tqdm

from batch_renorm.data.loaders import Batches, Source, in_batches, loader, rank_share
from batch_renorm.data.minibatches import EVALUATION, distinct_minibatches, generator, paired_minibatches
from batch_renorm.errors import UserError
from batch_renorm.norm import batch_statistics, training_normalization

ON_MINIBATCHES = {"pairs": "batch_statistics", "no_counterpart": "no_counterpart", "as_trained": "as_trained"}
"""The measurements on minibatches, and the names in their metrics val_top1_<name>."""


class Composition(NamedTuple):
    """Labels of a minibatch, and images of each label. (n, 1) means n images with any labels."""

    labels: int
    images_per_label: int


class Measurement(NamedTuple):
    """Some images of a split, in batches of indices, and how layers normalise them."""

    split: str
    batches: list[np.ndarray]
    normalization: Callable[[nn.Module], AbstractContextManager[None]] = lambda model: nullcontext()


@dataclass(frozen=True)
class Evaluation:
    """Which images are evaluated, and how often; names as in configs/train.yaml.

    `trained` is the composition of the experiment's minibatches; `groups` says whether the network's norms see groups.
    """

    every: PositiveInt
    train_images: PositiveInt
    labels_per_minibatch: PositiveInt
    images_per_label: PositiveInt
    batch_size: PositiveInt
    trained: Composition
    minibatches_every: PositiveInt = 1
    groups: bool = True

    def due(self, step: int, steps: int) -> bool:
        """Whether to evaluate the model after `step` updates: every `every` steps, and at the end."""
        return step % self.every == 0 or step == steps

    def minibatches_due(self, step: int, steps: int) -> bool:
        """Whether the evaluation after `step` updates also measures on minibatches."""
        return step % (self.every * self.minibatches_every) == 0 or step == steps

    def measurements(self, source: Source) -> dict[str, Measurement]:
        """The measurements by name.

        Raises:
            UserError: too few labels, or too few images for one minibatch of some composition.
        """
        val, train = source.labels("val"), source.labels("train")
        sample = generator(0, EVALUATION, 1).permutation(len(train))[: self.train_images]
        measurements = {
            "val": Measurement("val", in_batches(np.arange(len(val)), self.batch_size)),
            "train": Measurement("train", in_batches(np.sort(sample), self.batch_size)),
        }
        if not self.groups:
            return measurements
        size, present = self.labels_per_minibatch * self.images_per_label, len(np.unique(val))
        if size > present:
            raise UserError(
                f"evaluation with batch statistics needs minibatches of {size} images with different labels, and the "
                f"validation images have {present} labels: evaluation.labels_per_minibatch times "
                "evaluation.images_per_label must be as many or fewer"
            )
        pairs = paired_minibatches(val, self.labels_per_minibatch, self.images_per_label)
        of_the_minibatch = partial(batch_statistics, group_size=size)
        return measurements | {
            "pairs": Measurement("val", self._whole(pairs), of_the_minibatch),
            "no_counterpart": Measurement("val", self._whole(distinct_minibatches(val, size)), of_the_minibatch),
            "as_trained": Measurement("val", self._whole(self.as_trained(source)), training_normalization),
        }

    def as_trained(self, source: Source) -> np.ndarray:
        """Validation images in minibatches composed as in training, (minibatches, size)."""
        return paired_minibatches(source.labels("val"), *self.trained)

    def _whole(self, minibatches: np.ndarray) -> list[np.ndarray]:
        """Batches of about the evaluation's batch size that do not cut minibatches."""
        at_once = max(1, self.batch_size // minibatches.shape[1])
        return [rows.reshape(-1) for rows in in_batches(minibatches, at_once)]


Metric = Callable[[Tensor, Tensor], Tensor]
"""From logits (n, classes) and labels (n,) to a number for each image, (n,); their mean is the metric."""


def among_the_first(k: int, logits: Tensor, labels: Tensor) -> Tensor:
    """Whether the label is among the k largest logits, 100 or 0."""
    return 100.0 * (logits.topk(min(k, logits.shape[1]), dim=1).indices == labels[:, None]).any(1)


METRICS: dict[str, Metric] = {"top1": partial(among_the_first, 1), "top5": partial(among_the_first, 5)}
"""All are measured on the validation images, as val_<name>; on the other images only top1."""


@torch.no_grad()
def count(
    model: nn.Module,
    source: Source,
    loaded: Iterable[tuple[Any, Tensor]],
    device: torch.device,
    metrics: Sequence[str] = tuple(METRICS),
) -> dict[str, Tensor]:
    """The sums of some metrics, and the number of `images`, on the device; the host does not wait for it.

    Args:
        loaded: for every batch what the source fetched, and the labels, see `loaders.Batches`.
    """
    sums = {name: torch.zeros((), dtype=torch.float64, device=device) for name in (*metrics, "images")}
    for fetched, labels in loaded:
        labels = labels.to(device, non_blocking=True)
        output = model(source.images([fetched], device).contiguous(memory_format=torch.channels_last))
        logits = output[0] if isinstance(output, tuple) else output  # timm keeps the auxiliary head in evaluation
        sums["images"] += len(labels)
        for name in metrics:
            sums[name] += METRICS[name](logits, labels).sum(dtype=torch.float64)
    return sums


def values(sums: Mapping[str, Tensor]) -> dict[str, float]:
    """The metrics of the sums that `count` returns."""
    images = sums["images"].item()
    return {name: total.item() / images for name, total in sums.items() if name != "images"}


def watched(loaded: Iterable[Any], quiet: float = 0.0) -> Iterator[Any]:
    """Pass batches on; after `quiet` seconds, say on standard error how far it is."""
    seconds = 0.2 if sys.stderr.isatty() else 30  # between two lines of a log file
    return iter(tqdm(loaded, "evaluating", unit="batch", leave=False, mininterval=seconds, delay=quiet))


def evaluate(
    model: nn.Module,
    source: Source,
    measurements: Mapping[str, Measurement],
    device: torch.device,
    processes: int = 0,
    rank: int = 0,
    ranks: int = 1,
    watch: Callable[[Iterable[Any]], Iterator[Any]] = iter,
) -> dict[str, float]:
    """The metrics of some measurements of one model, in evaluation mode; ranks share the images and agree.

    Args:
        processes: that load the images; none besides this one by default.
        watch: passes the batches on, such as `watched`.
    """
    model.eval()
    mine = {name: rank_share(measurement.batches, rank, ranks) for name, measurement in measurements.items()}
    every = [(measurements[name].split, indices) for name, batches in mine.items() for indices in batches]
    loaded = watch(loader(Batches(source, every), processes, pin_memory=device.type == "cuda"))
    sums = {}
    for name, batches in mine.items():
        with measurements[name].normalization(model):
            wanted = tuple(METRICS) if name == "val" else ("top1",)
            sums[name] = count(model, source, islice(loaded, len(batches)), device, wanted)
    next(loaded, None)  # to its end
    if ranks > 1:
        for total in [total for by_metric in sums.values() for total in by_metric.values()]:
            dist.all_reduce(total)
    metrics = {f"val_{name}": value for name, value in values(sums.pop("val")).items()}
    names = {"train": "train_top1"} | {name: f"val_top1_{metric}" for name, metric in ON_MINIBATCHES.items()}
    return metrics | {names[name]: values(of)["top1"] for name, of in sums.items()}
