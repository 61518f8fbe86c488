"""The images for evaluation: loader processes prepare them once, then they stay in memory.

An evaluation uses an image several times, in several kinds of minibatches, and the next evaluation uses the same
images. So the prepared images are kept while there is room; images that do not fit are prepared again each time.
The same loader processes do both, and end when nothing is left to prepare.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from batch_renorm.data.loaders import Fetched, Source, end_with_this_process, outlive_signals

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
        self.source, self.processes, self.pinned, self.room = source, processes, pinned, room
        self.kept: Tensor | None = None
        self._labels = {split: torch.from_numpy(source.labels(split)) for split in ("train", "val")}
        self._rows = {split: np.full(len(labels), -1) for split, labels in self._labels.items()}
        """The place of each image in `kept`; -1 for those that are not."""
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
            if not completed:  # some rows have no pixels yet
                for rows in self._rows.values():
                    rows.fill(-1)
                self.kept, self._loader = None, None

    def _visit(self, visits: Sequence[Visit]) -> Iterator[tuple[Tensor | Fetched, Tensor]]:
        new = [self._give_rows(split, indices) for split, indices in visits]
        requests = [
            (split, missing[start : start + AT_ONCE])
            for (split, _), missing in zip(visits, new, strict=True)
            for start in range(0, len(missing), AT_ONCE)
        ]
        loaded: Iterator[Tensor | Fetched] = iter(self._load(requests) if requests else ())
        for (split, indices), missing in zip(visits, new, strict=True):
            fresh: dict[int, Tensor] = {}
            for start in range(0, len(missing), AT_ONCE):
                some, fetched = missing[start : start + AT_ONCE], next(loaded)
                self._in_fetched = isinstance(fetched, Fetched)
                pixels = fetched.pixels if isinstance(fetched, Fetched) else fetched
                self._keep(split, some, pixels)
                for position in np.flatnonzero(self._rows[split][some] < 0).tolist():
                    fresh[int(some[position])] = pixels[position]
            batch = self._together(split, indices, fresh)
            yield Fetched(batch) if self._in_fetched else batch, self._batch_labels(split, indices)
        for _ in loaded:
            raise AssertionError("the loader has more than was asked for")
        if all((self._rows[split][indices] >= 0).all() for split, indices in visits):
            self._loader = None  # nothing is left to prepare: its processes end

    def _give_rows(self, split: str, indices: np.ndarray) -> np.ndarray:
        """The images that must be prepared for this visit; they get rows while there is room."""
        rows = self._rows[split]
        missing, used = indices[rows[indices] < 0], self._used()
        free = len(missing) if self.room is None else max(0, self.room // self.source.image_bytes - used)
        kept = missing[:free]
        rows[kept] = used + np.arange(len(kept))
        return missing

    def _used(self) -> int:
        return sum(int((rows >= 0).sum()) for rows in self._rows.values())

    def _keep(self, split: str, indices: np.ndarray, pixels: Tensor) -> None:
        rows = self._rows[split][indices]
        positions = np.flatnonzero(rows >= 0)
        if not len(positions):
            return
        if self.kept is None:  # unwritten pages take no memory
            self.kept = _empty(self._used(), pixels)
        if rows.max() >= len(self.kept):  # a later evaluation visits more images
            self.kept = torch.cat([self.kept, _empty(self._used() - len(self.kept), pixels)])
        self.kept[torch.from_numpy(rows[positions])] = pixels[torch.from_numpy(positions)]

    def _together(self, split: str, indices: np.ndarray, fresh: dict[int, Tensor]) -> Tensor:
        """The images of a visit, in its order."""
        rows = self._rows[split][indices]
        like = self.kept if self.kept is not None else next(iter(fresh.values()))[None]
        batch = _empty(len(indices), like, pinned=self.pinned)
        if not fresh and self.kept is not None:
            return torch.index_select(self.kept, 0, torch.from_numpy(rows), out=batch)
        for position, (index, row) in enumerate(zip(indices.tolist(), rows.tolist(), strict=True)):
            batch[position] = fresh[index] if row < 0 else self.kept[row]  # type: ignore[index]
        return batch

    def _batch_labels(self, split: str, indices: np.ndarray) -> Tensor:
        labels = self._labels[split][indices]
        return labels.pin_memory() if self.pinned else labels

    def _load(self, requests: Sequence[Visit]) -> Iterator[Tensor | Fetched]:
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


def _empty(count: int, like: Tensor, pinned: bool = False) -> Tensor:
    """Room for images like others; channels innermost, as images are decoded and networks take them."""
    layout = torch.channels_last if like.ndim == 4 else torch.contiguous_format
    return torch.empty(count, *like.shape[1:], dtype=like.dtype, memory_format=layout, pin_memory=pinned)


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
