"""Loaders: a rank's passes from any step on, and the batches of evaluation.

A *source* is a data set. Loader processes call its `fetch`, which does the part of the work that suits
the CPU; the training process calls its `images`, which finishes the work on the device.

The paper's step is the mean gradient of `workers` minibatches. A rank owns a contiguous range of workers and computes
it in several passes. All ranks make the same number of passes, so that collective calls match.
"""

import itertools
import multiprocessing
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.util import Finalize
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from batch_renorm.data.minibatches import Regime
from batch_renorm.errors import UserError


@dataclass(frozen=True)
class Draw:
    """The place of images in a run: augmentation depends on this and the slot, and on nothing else.

    The slot is the image's position in its worker's minibatch.

    Args:
        worker: the worker of the first image.
        minibatch: images per worker, if images of the next workers follow; None if all belong to one worker.
    """

    seed: int
    step: int
    worker: int
    minibatch: int | None = None

    def place(self, position: int) -> tuple[int, int]:
        """Worker and slot of the image at a position among the fetched images."""
        if self.minibatch is None:
            return self.worker, position
        return self.worker + position // self.minibatch, position % self.minibatch


@dataclass
class Fetched:
    """Images as loader processes prepare them.

    Args:
        pixels: (n, channels, size, size) uint8, channels innermost.
        colours: (n, 5) float32 draws of `augmentation.distort`; None for evaluation.
    """

    pixels: Tensor
    colours: Tensor | None = None

    def changed(self, change: Callable[[Tensor], Tensor]) -> "Fetched":
        colours = None if self.colours is None else change(self.colours)
        return replace(self, pixels=change(self.pixels), colours=colours)

    def pin_memory(self) -> "Fetched":
        return self.changed(Tensor.pin_memory)

    def to(self, device: torch.device, non_blocking: bool = False) -> "Fetched":
        return self.changed(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def record_stream(self, stream: Any) -> None:
        self.pixels.record_stream(stream)
        if self.colours is not None:
            self.colours.record_stream(stream)


class Source(ABC):
    """A data set: labelled training and validation images.

    A class of one's own derives from this one, has the three numbers and the three methods, and changes the other
    members where their defaults are not right.
    """

    classes: int
    channels: int
    size: int
    """Height and width of the images, pixels."""
    needs_loader_processes: bool = True
    """Whether `fetch` reads or decodes files, which takes cores; False where it only notes which images are wanted."""
    remarks: Sequence[str] = ()
    """Lines that the user should read before training."""

    @property
    def image_bytes(self) -> int:
        """Bytes of an image in what `fetch` returns, of which shared memory holds some."""
        return 4 * self.channels * self.size**2

    @abstractmethod
    def labels(self, split: str) -> np.ndarray:
        """The label of every image of `split` ("train" or "val"), (images,) int64."""

    @abstractmethod
    def fetch(self, split: str, indices: np.ndarray, draw: Draw | None) -> Tensor | Fetched:
        """Prepare images in a loader process; `draw` determines the augmentation, None is for evaluation.

        The result depends on the arguments alone. Its first dimension is the images.
        """

    @abstractmethod
    def images(self, fetched: list[Any], device: torch.device) -> Tensor:
        """Finish the results of some calls of `fetch` on the device: (n, channels, size, size) float32."""


def check_source(source: Source, name: str) -> None:
    """Check the numbers and the labels of a data set, which may be a user's own.

    Args:
        name: what to call it in messages, as its `_target_`.

    Raises:
        UserError: it is no `Source`, or a member is wrong; the message names the member.
    """
    if not isinstance(source, Source):
        raise UserError(
            f"the data set {name} must derive from batch_renorm.data.loaders.Source (docs/experiments.md, A data set)"
        )
    for member in ("classes", "channels", "size"):
        value = getattr(source, member, None)
        if not isinstance(value, int | np.integer) or value < 1:
            raise UserError(f"the data set {name} has {member}={value!r}: it must be a whole number of at least 1")
    for split in ("train", "val"):
        labels = source.labels(split)
        if not isinstance(labels, np.ndarray) or labels.dtype != np.int64 or labels.ndim != 1:
            raise UserError(f"the data set {name} must give the {split} labels as a NumPy array, (images,) int64")
        if not len(labels) or labels.min() < 0 or labels.max() >= source.classes:
            got = f"{labels.min()} to {labels.max()}" if len(labels) else "none"
            raise UserError(f"the data set {name} has {source.classes} classes, so its {split} labels are 0 to "
                            f"{source.classes - 1}, one an image; they are {got}")  # fmt: skip


@dataclass
class Pass:
    """One forward/backward of a rank: some of the step's minibatches, in worker order.

    `fetched` has what the source fetched for all workers at once, so that a loader process sends a pass
    in a few pieces of shared memory; it is empty if the pass has no workers (see `Division.workers_of_pass`).
    """

    step: int
    last: bool
    fetched: list[Tensor | Fetched]
    labels: Tensor
    sent: Any = None
    """On a GPU: the event of its copy to the device, in a separate stream."""
    draw: Draw | None = None
    """The place of its images in the run; None without images."""

    def pin_memory(self) -> "Pass":
        return replace(self, fetched=[part.pin_memory() for part in self.fetched], labels=self.labels.pin_memory())

    def arrive(self, device: torch.device) -> None:
        """Make the device's current stream wait for the copy; the host does not wait."""
        if self.sent is None:
            return
        stream = torch.cuda.current_stream(device)
        stream.wait_event(self.sent)
        for tensor in (*self.fetched, self.labels):
            tensor.record_stream(stream)
        self.sent = None


class SentAhead:
    """The passes of a loader, each copied to a GPU while the previous pass computes.

    The trainer requests the next pass before it computes the current one. The copy, from pinned memory and in a
    separate stream, then overlaps with the GPU's computation.
    """

    def __init__(self, loader: Iterable[Pass], device: torch.device) -> None:
        self.loader, self.device = loader, device

    def __iter__(self) -> Iterator[Pass]:
        stream = torch.cuda.Stream(self.device)
        for batch in self.loader:
            with torch.cuda.stream(stream):
                fetched = [part.to(self.device, non_blocking=True) for part in batch.fetched]
                labels = batch.labels.to(self.device, non_blocking=True)
                sent = torch.cuda.Event()
                sent.record(stream)
            yield replace(batch, fetched=fetched, labels=labels, sent=sent)


def split_evenly(items: range, parts: int) -> list[range]:
    """Cut a range into `parts` contiguous ranges whose lengths differ by at most one, longest first.

    >>> [len(part) for part in split_evenly(range(50), 8)]
    [7, 7, 6, 6, 6, 6, 6, 6]
    """
    short, longer = divmod(len(items), parts)
    ends = [part * short + min(part, longer) for part in range(parts + 1)]
    return [items[start:end] for start, end in itertools.pairwise(ends)]


@dataclass(frozen=True)
class Division:
    """How a rank's share of a step's workers is divided into passes.

    Args:
        workers_per_pass: at most; None means all of a rank's workers at once.

    Raises:
        UserError: more ranks than workers, so that a rank would have nothing to do.
    """

    workers: int
    rank: int = 0
    ranks: int = 1
    workers_per_pass: int | None = None

    def __post_init__(self) -> None:
        if self.ranks > self.workers:
            raise UserError(
                f"{self.ranks} ranks but only {self.workers} workers a step: a rank would have no minibatch; "
                f"use at most {self.workers} devices or raise workers"
            )

    @property
    def passes(self) -> int:
        """The passes of every rank in a step."""
        largest_share = -(-self.workers // self.ranks)
        return -(-largest_share // (self.workers_per_pass or largest_share))

    def workers_of_pass(self, index: int) -> range:
        """The workers of the rank's pass number `index` of a step; later passes are never shorter.

        A rank with fewer workers than the largest share may have an empty pass. It comes first, because
        the ranks exchange gradients in the last pass of a step.
        """
        share = split_evenly(range(self.workers), self.ranks)[self.rank]
        lengths = [len(part) for part in split_evenly(share, self.passes)][::-1]
        start = sum(lengths[:index])
        return share[start : start + lengths[index]]


class TrainingPasses(Dataset[Pass]):
    """Item i is pass i % passes of step i // passes: a function of i and the seed alone."""

    def __init__(self, source: Source, regime: Regime, division: Division, seed: int) -> None:
        self.source, self.regime, self.division, self.seed = source, regime, division, seed
        self.labels = torch.from_numpy(source.labels("train"))

    def __getitem__(self, item: int) -> Pass:
        step, index = divmod(item, self.division.passes)
        workers = self.division.workers_of_pass(index)
        last = index == self.division.passes - 1
        if not workers:
            return Pass(step, last, [], torch.empty(0, dtype=torch.int64))
        minibatches = [self.regime(self.seed, step, worker) for worker in workers]
        indices = np.concatenate(minibatches)
        draw = Draw(self.seed, step, workers[0], len(minibatches[0]))
        return Pass(step, last, [self.source.fetch("train", indices, draw)], self.labels[indices], draw=draw)


class Items:
    """A sampler of the current items, without a length, so that only the trainer's steps are counted."""

    def __init__(self, items: Iterable[Any]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)


def outlive_signals(worker: int) -> None:
    """Make a loader process ignore signals that ask the run to stop: the training process handles them.

    A terminal's Ctrl-C or a cluster's signal goes to every process of a run. If it killed a loader process,
    the run could not finish its last step. `end_with_this_process` ends loader processes.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def end_with_this_process() -> None:
    """Have loader processes killed when this process ends, whatever the reason and whatever still refers to them.

    Otherwise Python sends them a SIGTERM, which they ignore, and waits for them for ever.
    """

    def kill() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises an error for a killed loader process
        for process in multiprocessing.active_children():
            if process.daemon:
                process.kill()

    Finalize(None, kill, exitpriority=100)  # an atexit function would not run in a process of multiprocessing


def loader(dataset: Dataset[Any], processes: int, **options: Any) -> DataLoader[Any]:
    """Items of a data set, prepared by loader processes that outlive signals and end with this process."""
    end_with_this_process()
    return DataLoader(dataset, batch_size=None, num_workers=processes, worker_init_fn=outlive_signals, **options)


def training_loader(
    dataset: TrainingPasses, start_step: int, steps: int, processes: int = 0, pin_memory: bool = False
) -> DataLoader[Pass]:
    """The rank's passes of steps `start_step` .. `steps` - 1, in order, prepared by `processes` loader processes."""
    passes = dataset.division.passes
    items = Items(range(start_step * passes, steps * passes))
    return loader(dataset, processes, sampler=items, pin_memory=pin_memory, persistent_workers=processes > 0)


class Batches(Dataset[Any]):
    """For each batch, a split and the indices of its images: what the source fetches, and the labels, (n,) int64."""

    def __init__(self, source: Source, batches: Sequence[tuple[str, np.ndarray]]) -> None:
        self.source, self.batches = source, batches
        self.labels = {split: torch.from_numpy(source.labels(split)) for split in {split for split, _ in batches}}

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, item: int) -> tuple[Tensor | Fetched, Tensor]:
        split, indices = self.batches[item]
        return self.source.fetch(split, indices, None), self.labels[split][indices]


def in_batches(indices: np.ndarray, size: int) -> list[np.ndarray]:
    """Cut indices into consecutive batches of `size`; the last one may be shorter."""
    return [indices[start : start + size] for start in range(0, len(indices), size)]


def rank_share(batches: list[np.ndarray], rank: int, ranks: int) -> list[np.ndarray]:
    """A rank's contiguous share of evaluation batches; the ranks together visit every image once."""
    return [batches[i] for i in split_evenly(range(len(batches)), ranks)[rank]]
