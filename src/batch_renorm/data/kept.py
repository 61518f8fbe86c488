"""The images that evaluations visit: prepared once by loader processes, then kept in memory.

An evaluation visits an image several times, in minibatches of several kinds, and the next evaluation visits the same
ones. So they are kept as they are prepared, uint8, as far as there is room; what does not fit is prepared again at
each visit. One set of loader processes does both, and ends when nothing is left to prepare.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from batch_renorm.data.images import Fetched
from batch_renorm.data.loaders import Source, outlive_signals

Visit = tuple[str, np.ndarray]
"""A split, and indices of some of its images."""

AT_ONCE = 64
"""Images that a loader process prepares at once: what stands in shared memory is a few of these and no whole batch."""


class KeptImages:
    """What `visit` gives, prepared without augmentation.

    Args:
        source: only where it says what an image takes (`image_bytes`) are images kept: others are made on the
            device, or come in pieces of another kind.
        processes: loader processes.
        room: bytes that kept images may take; None is no bound.
        pinned: whether batches stand in page-locked memory, from which a GPU copies without being waited for.
    """

    def __init__(self, source: Source, processes: int = 0, room: int | None = None, pinned: bool = False) -> None:
        self.source, self.processes, self.pinned = source, processes, pinned
        self.keeps = hasattr(source, "image_bytes")
        self.room = room
        self.pixels: Tensor | None = None
        self.prepared = 0
        """Images that were prepared so far."""
        self._rows = {split: np.full(len(source.labels(split)), -1) for split in ("train", "val")} if self.keeps else {}
        self._labels = {split: torch.from_numpy(source.labels(split)) for split in ("train", "val")}
        self._requests: list[Visit] = []
        self._loader: DataLoader[Any] | None = None

    def close(self) -> None:
        """End the loader processes. They ignore SIGTERM, so that the program would wait for them at its end."""
        self._loader = None

    def visit(self, visits: Sequence[Visit]) -> Iterator[tuple[Any, Tensor]]:
        """What the source fetches for each visit, in turn, and the labels, (n,) int64."""
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
            if not whole:  # ended in the middle: some rows have no pixels yet
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
        """Those of the images that have to be prepared for this visit; they get a place where there is room."""
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
        if self.pixels is None:  # pages that are never written take no memory
            most = sum(int((rows >= 0).sum()) for rows in self._rows.values())
            self.pixels = torch.empty(most, *pixels.shape[1:], dtype=torch.uint8)
        if rows.max() >= len(self.pixels):  # a later evaluation visits others, too
            more = sum(int((rows >= 0).sum()) for rows in self._rows.values())
            self.pixels = torch.cat([self.pixels, self.pixels.new_empty(more - len(self.pixels), *pixels.shape[1:])])
        self.pixels[torch.from_numpy(rows[positions])] = pixels[torch.from_numpy(positions)]

    def _together(self, split: str, indices: np.ndarray, fresh: dict[int, Tensor]) -> Tensor:
        """(n, channels, size, size) uint8."""
        size, rows = self.source.size, self._rows[split][indices]
        batch = torch.empty(
            len(indices), self.source.channels, size, size, dtype=torch.uint8, pin_memory=self.pinned
        )  # fmt: skip
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
            self._loader = DataLoader(
                _Fetching(self.source), batch_size=None, sampler=_Requests(self._requests), num_workers=self.processes,
                persistent_workers=True, worker_init_fn=outlive_signals,
            )  # fmt: skip
        self._requests[:] = requests
        yield from self._loader


class _Fetching(Dataset[Any]):
    """An item is what the source fetches for a visit."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __getitem__(self, visit: Visit) -> Any:
        return self.source.fetch(*visit, None)


class _Requests:
    """A sampler of whatever stands in a list when it is asked: the loader processes outlive an evaluation."""

    def __init__(self, requests: list[Visit]) -> None:
        self.requests = requests

    def __iter__(self) -> Iterator[Visit]:
        return iter(list(self.requests))
