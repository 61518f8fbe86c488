"""Where the time of a step goes, so that a user sees what bounds his run: images, their transfer, or the network.

Nothing waits for a GPU that would not have waited: its times are read off events, where a row is recorded
and the device has been waited for anyway.

Metrics, in seconds a step, of rank 0:

- seconds_read, seconds_decode, seconds_augment: what the images of a step took the loader processes, all
  of them together; these seconds pass while the network computes;
- seconds_transfer: images on their way to the device, and their colours there;
- seconds_step: forward, backward and update;
- seconds_wait: everything else; where it is large, images come too slowly.
"""

import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch


class Stages:
    """Adds up the seconds of stages; `take` gives their means over the steps since the last time."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._started: dict[str, Any] = {}
        self._replaced = 0

    def restart(self) -> None:
        """Forget what was added up."""
        self.seconds.clear()
        self.events.clear()

    def loaded(self, fetched: Sequence[Any]) -> None:
        """Count what loader processes say of a pass; sources whose images cost nothing say nothing."""
        for part in fetched:
            for stage, seconds in getattr(part, "seconds", {}).items():
                self.seconds[stage] += seconds
            self._replaced += getattr(part, "replaced", 0)

    def replaced(self) -> int:
        """Images that could not be read and were replaced, since the last time that this was asked."""
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
        """Mean seconds a step, by metric, since the last time; call it where the device has been waited for.

        Args:
            wall: seconds that passed.
            steps: that were done in them.
        """
        for stage, begin, end in self.events:
            self.seconds[stage] += begin.elapsed_time(end) / 1000
        row = {f"seconds_{stage}": seconds / steps for stage, seconds in self.seconds.items()}
        transfer = row.setdefault("seconds_transfer", 0.0)
        row["seconds_step"] = max(0.0, row.get("seconds_step", 0.0) - transfer)  # the one is within the other
        row["seconds_wait"] = max(0.0, wall / steps - row["seconds_step"] - transfer)
        self.restart()
        return row


def _now(device: torch.device) -> Any:
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
