"""Stopping by signal: any rank may receive it, and all ranks stop after the same step.

Schedulers send SIGTERM or SIGUSR1 before a time limit or a preemption; Ctrl-C is SIGINT.
Each ends the run after a step with a checkpoint, so the same command continues from there.
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

from batch_renorm.errors import Stopped

HEARD = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Stop:
    """Receives signals within `listening` and lets the ranks agree after every step.

    `decided` is the signal for which all ranks have agreed to stop, None before that; SIGINT takes precedence.
    """

    def __init__(self) -> None:
        self.heard: set[signal.Signals] = set()
        self.decided: signal.Signals | None = None
        self.talkative = True  # whether this process prints that it received a signal
        self._on_its_way: tuple[Tensor, Any] | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Record signals instead of dying from them; only the main thread can receive them, others do nothing."""
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
            # a signal may interrupt print(), which is not reentrant
            os.write(2, f"\n{name.name}: this step, a checkpoint, then the end{again}\n".encode())
        self.heard.add(name)

    def ballot(self, device: torch.device) -> Tensor:
        """This rank's vote, float32 (2,), to be summed over the ranks: whether to stop, and whether for Ctrl-C."""
        if not self.heard:  # avoids a copy from the host, which would wait for the device
            return torch.zeros(2, device=device)
        return torch.tensor([1.0, float(signal.SIGINT in self.heard)], device=device)

    def decide(self, votes: Tensor | None = None) -> None:
        """Decide after a step, from the sum of the ballots or, on a single rank, without it.

        On an accelerator the ranks read the sum one step later, when it has arrived: every rank reads
        the same sum at the same step, and no rank waits for its device.
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
    """End the process on a signal while it waits for other ranks before training: there is nothing to save.

    The wait is one call into C++, during which Python runs no signal handlers, so `Stop` would react only when the
    other ranks arrive, if they do. But Python writes a signal's number to a pipe at once, and a thread can read it.
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

    Its SIGTERM handler starts a collective in the middle of a step. Lightning also runs a collective before
    every pass, and the host waits for it. Neither can be switched off.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
