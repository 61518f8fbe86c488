"""Regimes: (seed, step, worker) -> the images of that worker's minibatch in that step.

Contract: the result is a pure function of these three numbers, of the regime and of the data set's
labels. There is no sampler state, so a run resumes by requesting another step, and neither ranks,
passes nor loader processes can change what is trained on.

Random numbers come from Philox, a counter-based generator: (seed, stream) is its key and
(step, worker) its counter, so that every minibatch has its own stream.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from batch_renorm.errors import UserError

Indices = np.ndarray
"""(size,) int64: positions of images in the training set."""

MINIBATCHES, PERMUTATIONS, AUGMENTATION, EVALUATION, MASKS = range(5)
"""Philox streams: one per purpose, so that no stream repeats another's numbers."""


def generator(seed: int, stream: int, *counter: int) -> np.random.Generator:
    """A generator that depends on nothing but its arguments (at most three counters)."""
    words = np.zeros(4, dtype=np.uint64)
    words[4 - len(counter) :] = counter
    return np.random.Generator(np.random.Philox(key=np.array([seed, stream], dtype=np.uint64), counter=words))


@lru_cache(maxsize=2)
def epoch_permutation(images: int, seed: int, epoch: int) -> Indices:
    """The order in which epoch number `epoch` visits all images once. Two are cached, because an epoch may
    end inside a minibatch."""
    return generator(seed, PERMUTATIONS, epoch).permutation(images)


@dataclass(frozen=True)
class Iid:
    """Independent images: a new permutation of the data set every epoch, used in step order.

    The minibatches of a step's workers follow one another in the permutation, so that no image is
    used twice in an epoch by any worker.
    """

    images: int
    size: int
    workers: int

    def __post_init__(self) -> None:
        if self.size > self.images:
            raise UserError(f"a minibatch of {self.size} needs at least as many training images, got {self.images}")

    def __call__(self, seed: int, step: int, worker: int) -> Indices:
        first = (step * self.workers + worker) * self.size
        epochs, offsets = np.divmod(np.arange(first, first + self.size), self.images)
        return np.concatenate(
            [epoch_permutation(self.images, seed, int(e))[offsets[epochs == e]] for e in np.unique(epochs)]
        )


class LabelsTimesImages:
    """Labels drawn with replacement, then `images_per_label` distinct images of each (section 4.3).

    The k-th images of all labels are together: with 16 labels x 2, rows 0..15 hold one image of
    each label and rows 16..31 the other. For a group of 32 the order does not matter; in groups of 16
    the two images of a label are in different halves, as in the paper's half-minibatch experiment.
    """

    def __init__(self, labels: np.ndarray, size: int, images_per_label: int) -> None:
        self.size, self.images_per_label = size, images_per_label
        self.order = np.argsort(labels, kind="stable")
        self.counts = np.bincount(labels)
        self.starts = np.cumsum(self.counts) - self.counts
        if (self.counts < images_per_label).any():
            poorest = int(self.counts.argmin())
            raise UserError(
                f"label {poorest} (of 0, 1, ..., by class) has {self.counts[poorest]} training images, and minibatches "
                f"have {images_per_label} of a label (minibatch.images_per_label): add some, or leave the class out "
                "(data.labels)"
            )

    def __call__(self, seed: int, step: int, worker: int) -> Indices:
        draw = generator(seed, MINIBATCHES, step, worker)
        labels = draw.integers(len(self.counts), size=self.size // self.images_per_label)
        picks = np.empty((self.images_per_label, len(labels)), dtype=np.int64)
        for k in range(self.images_per_label):
            # one of the images not yet picked: a position among the rest, moved past each earlier pick
            pick = draw.integers(self.counts[labels] - k)
            for earlier in np.sort(picks[:k], axis=0):
                pick += pick >= earlier
            picks[k] = pick
        return self.order[self.starts[labels] + picks].reshape(-1)


Regime = Callable[[int, int, int], Indices]
"""(seed, step, worker) -> image indices."""


def regime(labels: np.ndarray, size: int, workers: int, images_per_label: int | None) -> Regime:
    """The regime that a config describes; `images_per_label=None` is i.i.d."""
    if images_per_label is None:
        return Iid(len(labels), size, workers)
    return LabelsTimesImages(labels, size, images_per_label)


def paired_minibatches(labels: np.ndarray, labels_per_minibatch: int, images_per_label: int) -> np.ndarray:
    """Fixed minibatches for evaluation with batch statistics: the paper's 25 labels x 2 test images.

    The images are ordered as in `LabelsTimesImages`: the k-th images of all labels together. Every
    image is in at most one minibatch; a label may be in a minibatch more than once. Images that
    remain after division, of a label or of the sets, are not used.

    Returns:
        (minibatches, labels_per_minibatch * images_per_label) int64 positions in `labels`.
    """
    draw = generator(0, EVALUATION)
    sets = [
        images[len(images) % images_per_label :].reshape(-1, images_per_label) for images in _by_label(labels, draw)
    ]
    pairs = draw.permutation(np.concatenate(sets))
    whole = len(pairs) // labels_per_minibatch
    if not whole:
        raise UserError(
            f"the {len(labels)} validation images give no minibatch of {labels_per_minibatch} labels x "
            f"{images_per_label} images: choose fewer of a label (evaluation or minibatch.images_per_label)"
        )
    minibatches = pairs[: whole * labels_per_minibatch].reshape(whole, labels_per_minibatch, images_per_label)
    return minibatches.transpose(0, 2, 1).reshape(whole, -1)


def distinct_minibatches(labels: np.ndarray, size: int) -> np.ndarray:
    """Fixed minibatches in which no image has a counterpart: a minibatch has every label at most once.

    For each k, the k-th images of all labels are divided into minibatches, so that every image is in at
    most one minibatch. Images that remain after division by `size` are not used.

    Returns:
        (minibatches, size) int64 positions in `labels`.

    Raises:
        UserError: fewer than `size` labels.
    """
    draw = generator(0, EVALUATION, 2)
    images = _by_label(labels, draw)
    if len(images) < size:
        raise UserError(f"{len(images)} labels give no minibatch of {size} images with different labels")
    minibatches = []
    for k in range(max(map(len, images))):
        kth = draw.permutation([own[k] for own in images if len(own) > k])
        minibatches += [kth[start : start + size] for start in range(0, len(kth) - size + 1, size)]
    return np.stack(minibatches)


def _by_label(labels: np.ndarray, draw: np.random.Generator) -> list[np.ndarray]:
    """The positions of each label's images, in a random order from `draw`."""
    shuffled = draw.permutation(len(labels))
    by_label = shuffled[np.argsort(labels[shuffled], kind="stable")]
    return [own for own in np.split(by_label, np.cumsum(np.bincount(labels))[:-1]) if len(own)]
