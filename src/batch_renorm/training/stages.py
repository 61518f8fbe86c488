"""The time of each part of a step, which shows what limits a run: images, their transfer, or the network.

Metrics of rank 0, in seconds per step; a GPU's come from events, so that nothing waits for it:

- seconds_read, seconds_decode, seconds_augment: of all loader processes together, while the network computes;
- seconds_transfer: copying images to the device, and distorting their colours there;
- seconds_step: forward, backward and update;
- seconds_wait: everything else; if it is large, images come too slowly.
"""

import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from batch_renorm.data.loaders import Fetched


class Stages:
    """Adds up the seconds of stages; `take` returns their means over the steps since its last call."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._started: dict[str, Any] = {}
        self._replaced = 0

    def restart(self) -> None:
        """Clear the sums."""
        self.seconds.clear()
        self.events.clear()

    def loaded(self, fetched: Sequence[Tensor | Fetched]) -> None:
        """Add the seconds that loader processes report for a pass; some sources report none."""
        for part in fetched:
            if isinstance(part, Fetched):
                for stage, seconds in part.seconds.items():
                    self.seconds[stage] += seconds
                self._replaced += part.replaced

    def replaced(self) -> int:
        """The number of unreadable images that were replaced since the last call."""
        replaced, self._replaced = self._replaced, 0
        return replaced

    def start(self, stage: str, device: torch.device) -> None:
        self._started[stage] = _now(device)

    def stop(self, stage: str, device: torch.device) -> None:
        begin, end = self._started.pop(stage), _now(device)
        if device.type == "cuda":
            self.events.append((stage, begin, end))
        else:
            self.seconds[stage] += end - begin

    def take(self, wall: float, steps: int) -> dict[str, float]:
        """Mean seconds per step, by metric, since the last call, `steps` steps and `wall` seconds ago.

        Call it after waiting for the device.
        """
        for stage, begin, end in self.events:
            self.seconds[stage] += begin.elapsed_time(end) / 1000
        row = {f"seconds_{stage}": seconds / steps for stage, seconds in self.seconds.items()}
        transfer = row.setdefault("seconds_transfer", 0.0)
        row["seconds_step"] = max(0.0, row.get("seconds_step", 0.0) - transfer)  # it includes the transfer
        row["seconds_wait"] = max(0.0, wall / steps - row["seconds_step"] - transfer)
        self.restart()
        return row


def _now(device: torch.device) -> Any:
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
