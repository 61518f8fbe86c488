"""Accuracy of the inference model, as the paper measures it.

Metrics are percentages, named as in results/paper/curves.csv:

- val_top1, val_top5: all validation images, each once.
- train_top1: a fixed sample of training images, prepared like validation images.
- val_top1_batch_statistics: validation images in minibatches of 25 labels x 2, every layer
  normalising with muB and sigmaB of the minibatch instead of mu and sigma (section 4.3).
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader

from batch_renorm.data.loaders import EvaluationImages, Source, in_batches, share
from batch_renorm.data.minibatches import EVALUATION, generator, paired_minibatches
from batch_renorm.norm import batch_statistics


@dataclass(frozen=True)
class Evaluation:
    """Which images are evaluated, and how often; names as in configs/train.yaml."""

    every: int
    train_images: int
    labels_per_minibatch: int
    images_per_label: int
    batch_size: int

    def due(self, step: int, steps: int) -> bool:
        """Whether the model after `step` updates is evaluated: every so often, and at the end."""
        return step % self.every == 0 or step == steps

    def batches(self, source: Source) -> dict[str, tuple[str, list[np.ndarray]]]:
        """The images of each measurement, in batches: name -> (split, batches of indices)."""
        val, train = source.labels("val"), source.labels("train")
        sample = generator(0, EVALUATION, 1).permutation(len(train))[: self.train_images]
        pairs = paired_minibatches(val, self.labels_per_minibatch, self.images_per_label)
        minibatches_at_once = max(1, self.batch_size // pairs.shape[1])
        return {
            "val": ("val", in_batches(np.arange(len(val)), self.batch_size)),
            "train": ("train", in_batches(np.sort(sample), self.batch_size)),
            "pairs": ("val", [rows.reshape(-1) for rows in in_batches(pairs, minibatches_at_once)]),
        }

    @property
    def minibatch_size(self) -> int:
        return self.labels_per_minibatch * self.images_per_label


@torch.no_grad()
def count_correct(
    model: nn.Module, source: Source, split: str, batches: list[np.ndarray], device: torch.device, processes: int
) -> Tensor:
    """(images, right at first guess, right within five), int64 on the device."""
    loader = DataLoader(EvaluationImages(source, split, batches), batch_size=None, num_workers=processes)
    counts = torch.zeros(3, dtype=torch.int64, device=device)
    for fetched, labels in loader:
        labels = labels.to(device)
        images = source.images([fetched], device).contiguous(memory_format=torch.channels_last)
        output = model(images)
        logits = output[0] if isinstance(output, tuple) else output  # timm keeps the auxiliary head in evaluation
        guesses = logits.topk(min(5, source.classes), dim=1).indices
        right = guesses == labels[:, None]
        counts += torch.stack([right.new_tensor(len(labels), dtype=torch.int64), right[:, 0].sum(), right.sum()])
    return counts


def evaluate(
    model: nn.Module,
    source: Source,
    evaluation: Evaluation,
    device: torch.device,
    processes: int = 0,
    rank: int = 0,
    ranks: int = 1,
) -> dict[str, float]:
    """All metrics of one model, in percent. Ranks share the images and agree on the result.

    The model is left in evaluation mode.
    """
    model.eval()
    counts = {}
    for name, (split, batches) in evaluation.batches(source).items():
        own = share(batches, rank, ranks)
        if name == "pairs":
            with batch_statistics(model, group_size=evaluation.minibatch_size):
                counts[name] = count_correct(model, source, split, own, device, processes)
        else:
            counts[name] = count_correct(model, source, split, own, device, processes)
    total = torch.stack(list(counts.values()))
    if ranks > 1:
        dist.all_reduce(total)
    images, top1, top5 = {}, {}, {}
    for name, row in zip(counts, total.tolist(), strict=True):
        images[name], top1[name], top5[name] = row[0], 100 * row[1] / row[0], 100 * row[2] / row[0]
    return {
        "val_top1": top1["val"],
        "val_top5": top5["val"],
        "train_top1": top1["train"],
        "val_top1_batch_statistics": top1["pairs"],
    }
