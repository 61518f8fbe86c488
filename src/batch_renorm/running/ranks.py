"""The ranks of a run: their places, what they tell each other, and how they agree to stop.

Schedulers send SIGTERM or SIGUSR1 before a time limit or a preemption, a terminal that closes SIGHUP, Ctrl-C SIGINT.
Any rank may receive one. It ends the run after a step with a checkpoint, so the same command continues from there.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from batch_renorm.errors import UserError
from batch_renorm.screen import print_from_handler, waiting

T = TypeVar("T")
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)


@dataclass(frozen=True)
class World:
    """This process's place in the run: `devices` ranks on each of `nodes` machines."""

    rank: int
    local_rank: int
    devices: int
    nodes: int
    node: int
    launcher: Literal["python", "torchrun", "srun"]

    @property
    def ranks(self) -> int:
        return self.devices * self.nodes


ALONE = World(rank=0, local_rank=0, devices=1, nodes=1, node=0, launcher="python")


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """Let a signal end the process while it waits for other ranks before training: there is nothing to save.

    The wait is one call into C++, in which Python runs no signal handlers: `Stop` would not react.
    """
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        signal.signal(number, signal.SIG_IGN if handler is signal.SIG_IGN else signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def gather(value: T, world: World) -> list[T]:
    """The values of all ranks, in rank order."""
    values: list[Any] = [value] * world.ranks
    if world.ranks > 1:
        with waiting(f"all of {world.ranks} ranks"), ending_on_signals():
            dist.all_gather_object(values, value)
    return values


def from_rank_0(value: T, world: World) -> T:
    """Rank 0's value on every rank."""
    return gather(value if world.rank == 0 else None, world)[0]  # type: ignore[return-value]


def together(do: Callable[[], T], world: World) -> T:
    """Do something on every rank. If it fails on some, the first raises its error; the others end in silence."""
    error, status = None, 0
    try:
        result = do()
    except Exception as failure:
        error, status = failure, 2 if isinstance(failure, UserError) else 1
    statuses = gather(status, world)
    if not any(statuses):
        return result
    if error is not None and not any(statuses[: world.rank]):
        raise error
    raise SystemExit(max(statuses))


def on_rank_0(do: Callable[[], T], world: World) -> T:
    """Do something on rank 0 alone; its result, or its failure, is that of every rank."""
    return from_rank_0(together(lambda: do() if world.rank == 0 else None, world), world)  # type: ignore[return-value]


class Stop:
    """Receives signals within `listening` and lets the ranks agree after every step.

    `decided` is the signal for which all ranks have agreed to stop, None before that; SIGINT takes precedence.
    """

    def __init__(self, talkative: bool = True) -> None:
        self.talkative = talkative  # whether this process prints that it received a signal
        self.heard: set[signal.Signals] = set()
        self.decided: signal.Signals | None = None
        self._on_its_way: tuple[Tensor, Any] | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Record signals instead of dying from them."""
        nohup = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set()
        before = {number: signal.signal(number, self._hear) for number in {*SIGNALS} - nohup}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # launch.py starts ranks with signals blocked
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number)
        if name in self.heard and name is signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        if not self.heard and self.talkative:
            again = "; a second Ctrl-C ends at once" if name is signal.SIGINT else ""
            print_from_handler(f"{name.name}: this step, a checkpoint, then the end{again}")
        self.heard.add(name)

    def ballot(self, device: torch.device) -> Tensor:
        """This rank's vote, float32 (2,), to be summed over the ranks: whether to stop, and whether for Ctrl-C."""
        if not self.heard:  # avoids a copy from the host, which would wait for the device
            return torch.zeros(2, device=device)
        return torch.tensor([1.0, float(signal.SIGINT in self.heard)], device=device)

    def decide(self, votes: Tensor | None = None) -> None:
        """Decide after a step, from the sum of the ballots or, on a single rank, without it.

        On an accelerator all ranks read the sum one step later, when it has arrived, so that none waits for its device.
        """
        if votes is None:
            votes = self.ballot(torch.device("cpu"))
        elif votes.device.type == "cuda":
            earlier = self._on_its_way
            host = torch.empty(votes.shape, dtype=votes.dtype, pin_memory=True).copy_(votes, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self._on_its_way = host, event
            if earlier is None:
                return
            votes = earlier[0]
            earlier[1].synchronize()
        stop, interrupt = votes.tolist()
        if stop:
            self.decided = signal.SIGINT if interrupt else min(self.heard, default=signal.SIGTERM)
