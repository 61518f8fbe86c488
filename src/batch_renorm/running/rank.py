"""The main program of the ranks that `launch` starts: no command line, the config comes from rank 0."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from batch_renorm.errors import Stopped
from batch_renorm.running.cli import explained
from batch_renorm.running.signals import HEARD


def rank_main(environment: Mapping[str, str], settings: dict[str, Any]) -> None:
    """Train as one rank of a run.

    Args:
        environment: torchrun's variables for this rank.
    """
    for number in HEARD:  # until training handles them; rank 0 handles what arrives before
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HEARD)
    threading.Thread(target=end_with_rank_0, daemon=True).start()
    os.environ.update(environment)
    from batch_renorm.running.run import train  # here because it imports this module

    with explained(), suppress(Stopped):  # rank 0 reports it, and its exit status is the run's
        train(settings)


def end_with_rank_0() -> None:
    rank_0 = multiprocessing.parent_process()
    assert rank_0 is not None
    rank_0.join()
    os._exit(1)
