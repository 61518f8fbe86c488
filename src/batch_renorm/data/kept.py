"""The images for evaluation: loader processes prepare them once, then they stay in memory.

An evaluation uses an image several times, in several kinds of minibatches, and the next evaluation uses the same
images. So the prepared uint8 images are kept while there is room; images that do not fit are prepared again each
time. The same loader processes do both, and end when nothing is left to prepare.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from batch_renorm.data.images import Fetched
from batch_renorm.data.loaders import Source, end_with_this_process, outlive_signals

Visit = tuple[str, np.ndarray]
"""A split, and the indices of some of its images."""

AT_ONCE = 64
"""Images that a loader process prepares at once, so that shared memory holds a few of these and no whole batch."""


class KeptImages:
    """Images for `visit`, prepared without augmentation.

    Args:
        source: its images are kept only if it has `image_bytes`; other sources make images on the device,
            or fetch something else than pixels.
        processes: number of loader processes.
        room: bytes that kept images may take; None means no limit.
        pinned: whether batches are in page-locked memory, from which a GPU copies without making the host wait.
    """

    def __init__(self, source: Source, processes: int = 0, room: int | None = None, pinned: bool = False) -> None:
        self.source, self.processes, self.pinned = source, processes, pinned
        self.keeps = hasattr(source, "image_bytes")
        self.room = room
        self.pixels: Tensor | None = None
        self.prepared = 0
        """Number of images prepared so far."""
        self._rows = {split: np.full(len(source.labels(split)), -1) for split in ("train", "val")} if self.keeps else {}
        self._labels = {split: torch.from_numpy(source.labels(split)) for split in ("train", "val")}
        self._requests: list[Visit] = []
        self._loader: DataLoader[Any] | None = None

    def close(self) -> None:
        """End the loader processes."""
        self._loader = None

    def visit(self, visits: Sequence[Visit]) -> Iterator[tuple[Any, Tensor]]:
        """For each visit in order: what the source fetched, and the labels, (n,) int64."""
        if not self.keeps:
            for (split, indices), fetched in zip(visits, self._load(visits), strict=True):
                pinned = self.pinned and hasattr(fetched, "pin_memory")
                yield fetched.pin_memory() if pinned else fetched, self._batch_labels(split, indices)
            return
        whole = False
        try:
            yield from self._visit(visits)
            whole = True
        finally:
            if not whole:  # stopped early: some rows have no pixels yet
                for rows in self._rows.values():
                    rows.fill(-1)
                self.pixels, self._loader = None, None

    def _visit(self, visits: Sequence[Visit]) -> Iterator[tuple[Any, Tensor]]:
        new = [self._give_rows(split, indices) for split, indices in visits]
        requests = [
            (split, missing[start : start + AT_ONCE])
            for (split, _), missing in zip(visits, new, strict=True)
            for start in range(0, len(missing), AT_ONCE)
        ]
        loaded: Iterator[Any] = iter(self._load(requests) if requests else ())
        for (split, indices), missing in zip(visits, new, strict=True):
            fresh: dict[int, Tensor] = {}
            for start in range(0, len(missing), AT_ONCE):
                some, fetched = missing[start : start + AT_ONCE], next(loaded)
                self._keep(split, some, fetched.pixels)
                for position in np.flatnonzero(self._rows[split][some] < 0).tolist():
                    fresh[int(some[position])] = fetched.pixels[position]
            yield Fetched(self._together(split, indices, fresh), None), self._batch_labels(split, indices)
        for _ in loaded:
            raise AssertionError("the loader has more than was asked for")
        if all((rows[indices] >= 0).all() for split, indices in visits for rows in [self._rows[split]]):
            self._loader = None  # nothing is left to prepare: its processes end

    def _give_rows(self, split: str, indices: np.ndarray) -> np.ndarray:
        """The images that must be prepared for this visit; they get rows while there is room."""
        rows = self._rows[split]
        missing = indices[rows[indices] < 0]
        used = sum(int((rows >= 0).sum()) for rows in self._rows.values())
        free = len(missing) if self.room is None else max(0, self.room // self.source.image_bytes - used)  # type: ignore[attr-defined]
        kept = missing[:free]
        rows[kept] = used + np.arange(len(kept))
        return missing

    def _keep(self, split: str, indices: np.ndarray, pixels: Tensor) -> None:
        rows = self._rows[split][indices]
        positions = np.flatnonzero(rows >= 0)
        if not len(positions):
            return
        if self.pixels is None:  # unwritten pages take no memory
            most = sum(int((rows >= 0).sum()) for rows in self._rows.values())
            self.pixels = _empty(most, *pixels.shape[1:])
        if rows.max() >= len(self.pixels):  # a later evaluation visits more images
            more = sum(int((rows >= 0).sum()) for rows in self._rows.values())
            self.pixels = torch.cat([self.pixels, _empty(more - len(self.pixels), *pixels.shape[1:])])
        self.pixels[torch.from_numpy(rows[positions])] = pixels[torch.from_numpy(positions)]

    def _together(self, split: str, indices: np.ndarray, fresh: dict[int, Tensor]) -> Tensor:
        """(n, channels, size, size) uint8."""
        size, rows = self.source.size, self._rows[split][indices]
        batch = _empty(len(indices), self.source.channels, size, size, pinned=self.pinned)
        if not fresh and self.pixels is not None:
            return torch.index_select(self.pixels, 0, torch.from_numpy(rows), out=batch)
        for position, (index, row) in enumerate(zip(indices.tolist(), rows.tolist(), strict=True)):
            batch[position] = fresh[index] if row < 0 else self.pixels[row]  # type: ignore[index]
        return batch

    def _batch_labels(self, split: str, indices: np.ndarray) -> Tensor:
        labels = self._labels[split][indices]
        return labels.pin_memory() if self.pinned else labels

    def _load(self, requests: Sequence[Visit]) -> Iterator[Any]:
        self.prepared += sum(len(indices) for _, indices in requests)
        if not self.processes:
            for split, indices in requests:
                yield self.source.fetch(split, indices, None)
            return
        if self._loader is None:
            end_with_this_process()
            self._loader = DataLoader(
                _Fetching(self.source), batch_size=None, sampler=_Requests(self._requests), num_workers=self.processes,
                persistent_workers=True, worker_init_fn=outlive_signals,
            )  # fmt: skip
        self._requests[:] = requests
        yield from self._loader


def _empty(*shape: int, pinned: bool = False) -> Tensor:
    """Channels innermost, as images are decoded and networks take them."""
    return torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last, pin_memory=pinned)


class _Fetching(Dataset[Any]):
    """A data set whose items are what the source fetches for a visit."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __getitem__(self, visit: Visit) -> Any:
        return self.source.fetch(*visit, None)


class _Requests:
    """A sampler of a list's current contents: the loader processes are reused for later evaluations."""

    def __init__(self, requests: list[Visit]) -> None:
        self.requests = requests

    def __iter__(self) -> Iterator[Visit]:
        return iter(list(self.requests))
