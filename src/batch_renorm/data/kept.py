"""The images for evaluation: loader processes prepare them once, then they stay in memory.

An evaluation uses an image several times, in several kinds of minibatches, and the next evaluation uses the same
images. So the prepared images are kept while there is room; images that do not fit are prepared again each time.
The same loader processes do both, and end when nothing is left to prepare.
"""

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from batch_renorm.data.loaders import Fetched, Items, Source, in_batches, loader

Visit = tuple[str, np.ndarray]
"""A split, and the indices of some of its images."""

AT_ONCE = 64
"""Images that a loader process prepares at once, so that shared memory holds a few of these and no whole batch."""


class KeptImages:
    """Images for `visit`, prepared without augmentation.

    Args:
        source: its images are kept if it needs loader processes; others are made on the device each time.
        processes: number of loader processes.
        room: bytes that kept images may take; None means no limit.
        pinned: whether batches are in page-locked memory, from which a GPU copies without making the host wait.
    """

    def __init__(self, source: Source, processes: int = 0, room: int | None = None, pinned: bool = False) -> None:
        self.source, self.processes, self.pinned = source, processes, pinned
        self.most = sys.maxsize if room is None else room // source.image_bytes
        self.kept: dict[tuple[str, int], Tensor] = {}
        self._labels = {split: torch.from_numpy(source.labels(split)) for split in ("train", "val")}
        self._requests: list[Visit] = []
        self._loader: DataLoader[Any] | None = None
        self._in_fetched = True  # whether the source returns `Fetched`, and not tensors

    def close(self) -> None:
        """End the loader processes."""
        self._loader = None

    def visit(self, visits: Sequence[Visit]) -> Iterator[tuple[Tensor | Fetched, Tensor]]:
        """For each visit in order: what the source fetched, and the labels, (n,) int64."""
        if not self.source.needs_loader_processes:
            for (split, indices), fetched in zip(visits, self._load(visits), strict=True):
                yield fetched.pin_memory() if self.pinned else fetched, self._batch_labels(split, indices)
            return
        completed = False
        try:
            yield from self._visit(visits)
            completed = True
        finally:
            if not completed or all((split, i) in self.kept for split, indices in visits for i in indices.tolist()):
                self.close()  # nothing is left to prepare, or what is left is not asked for

    def _visit(self, visits: Sequence[Visit]) -> Iterator[tuple[Tensor | Fetched, Tensor]]:
        chosen: set[tuple[str, int]] = set(self.kept)
        requests: list[Visit] = []
        prepare: list[set[int]] = []  # positions of each visit's images that must be prepared
        for split, indices in visits:
            new = np.flatnonzero([(split, index) not in chosen for index in indices.tolist()])
            chosen.update((split, index) for index in indices[new][: self.most - len(chosen)].tolist())
            requests += [(split, some) for some in in_batches(indices[new], AT_ONCE)]
            prepare.append(set(new.tolist()))
        prepared = self._prepared(requests)
        for (split, indices), positions in zip(visits, prepare, strict=True):
            batch: Tensor | None = None
            for position, index in enumerate(indices.tolist()):
                image = next(prepared) if position in positions else self.kept[split, index]
                batch = _empty(len(indices), image, self.pinned) if batch is None else batch
                batch[position] = image
                if position in positions and (split, index) in chosen:
                    self.kept[split, index] = image.clone()  # `image` may be in shared memory
            assert batch is not None
            yield Fetched(batch) if self._in_fetched else batch, self._batch_labels(split, indices)

    def _prepared(self, requests: Sequence[Visit]) -> Iterator[Tensor]:
        """Image by image what the source fetches."""
        for fetched in self._load(requests) if requests else ():
            self._in_fetched = isinstance(fetched, Fetched)
            yield from fetched.pixels if isinstance(fetched, Fetched) else fetched

    def _batch_labels(self, split: str, indices: np.ndarray) -> Tensor:
        labels = self._labels[split][indices]
        return labels.pin_memory() if self.pinned else labels

    def _load(self, requests: Sequence[Visit]) -> Iterator[Tensor | Fetched]:
        if not self.processes:
            for split, indices in requests:
                yield self.source.fetch(split, indices, None)
            return
        if self._loader is None:
            requested = Items(self._requests)
            self._loader = loader(_Fetching(self.source), self.processes, sampler=requested, persistent_workers=True)
        self._requests[:] = requests
        yield from self._loader


def _empty(count: int, like: Tensor, pinned: bool) -> Tensor:
    """Room for images like another; channels innermost, as images are decoded and networks take them."""
    layout = torch.channels_last if like.ndim == 3 else torch.contiguous_format
    return torch.empty(count, *like.shape, dtype=like.dtype, memory_format=layout, pin_memory=pinned)


class _Fetching(Dataset[Any]):
    """A data set whose items are what the source fetches for a visit."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __getitem__(self, visit: Visit) -> Any:
        return self.source.fetch(*visit, None)
