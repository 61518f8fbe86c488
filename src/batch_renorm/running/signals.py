"""Being asked to stop: any rank may hear it, all ranks obey at the end of the same step.

SIGTERM and SIGUSR1 are what schedulers send before a time limit or a preemption, SIGINT is Ctrl-C.
Each ends the run at a step boundary with a checkpoint, so that the same command goes on from there.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from pytorch_lightning import Trainer
from torch import Tensor

from batch_renorm.running.errors import Stopped

HEARD = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Stop:
    """Listens to signals in `listening`, and lets the ranks agree after every step.

    `decided` is the signal that all ranks have agreed to stop for, SIGINT before the others, else None.
    """

    def __init__(self) -> None:
        self.heard: set[signal.Signals] = set()
        self.decided: signal.Signals | None = None
        self.talkative = True  # whether this process tells a person that it has heard
        self._on_its_way: tuple[Tensor, Any] | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear signals instead of dying of them. In a thread other than the main one they cannot be heard."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._hear) for number in HEARD}
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
            # print() may be interrupted in the middle of itself, and must not be entered again
            os.write(2, f"\n{name.name}: this step, a checkpoint, then the end{again}\n".encode())
        self.heard.add(name)

    def ballot(self, device: torch.device) -> Tensor:
        """This rank's vote, float32 (2,), to be summed over the ranks: to stop, and to stop for Ctrl-C."""
        if not self.heard:  # no copy from the host, which would wait for the device
            return torch.zeros(2, device=device)
        return torch.tensor([1.0, float(signal.SIGINT in self.heard)], device=device)

    def decide(self, votes: Tensor | None = None) -> None:
        """Take the decision of a step, given the ballots' sum or, on a single rank, nothing.

        On an accelerator the sum is looked at one step later, when it has arrived: every rank then reads
        the same sum at the same step, and none waits for its device.
        """
        if votes is None:
            counts = [float(bool(self.heard)), float(signal.SIGINT in self.heard)]
        elif votes.device.type == "cuda":
            earlier = self._on_its_way
            host = torch.empty(votes.shape, dtype=votes.dtype, pin_memory=True).copy_(votes, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self._on_its_way = host, event
            if earlier is None:
                return
            earlier[1].synchronize()
            counts = earlier[0].tolist()
        else:
            counts = votes.tolist()
        if counts[0]:
            self.decided = signal.SIGINT if counts[1] else min(self.heard, default=signal.SIGTERM)


@contextmanager
def hear_while_waiting() -> Iterator[None]:
    """Within it, where a rank waits for others before it trains, being asked to stop ends it: there is nothing to keep.

    The wait is one call into C++, during which Python runs no handler: `Stop` would hear when the others have come, if
    they do. But a signal's number is written to a pipe at once, and a thread can read it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    listener = threading.Thread(target=_end_when_heard, args=(reader,), daemon=True)
    listener.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.write(writer, b"\0")
        listener.join()
        os.close(reader)
        os.close(writer)


def _end_when_heard(reader: int) -> None:
    while number := os.read(reader, 1)[0]:
        if number in HEARD:
            name = signal.Signals(number)
            os.write(2, f"\n{name.name}: ends, waiting for the other ranks; nothing was trained yet\n".encode())
            os._exit(Stopped(name, 0, 0).status)


def take_signals_from(trainer: Trainer) -> None:
    """Keep Lightning from handling signals itself.

    Its SIGTERM handler starts a collective in the middle of a step, and a second one, waited for on the
    host, goes before every pass. Neither has a switch.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
