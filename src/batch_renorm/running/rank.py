"""A rank other than the first, as `launch` starts it: no command line, the config comes from rank 0."""

import json
import os
import sys
import threading
from contextlib import suppress

from batch_renorm.running.cli import explained
from batch_renorm.running.errors import Stopped


def main() -> None:
    settings = json.loads(sys.stdin.readline())
    threading.Thread(target=end_with_rank_0, daemon=True).start()
    from batch_renorm.running.run import train

    with explained(), suppress(Stopped):  # rank 0 says so, and its exit status is the run's
        train(settings)


def end_with_rank_0() -> None:
    """Rank 0 keeps this process's stdin open as long as it lives: killed, it takes the others with it.

    Reads past Python's own stdin, whose lock a waiting reader would hold: a loader process that is forked
    meanwhile closes its copy, and would wait for that lock for ever.
    """
    while os.read(0, 1024):
        pass
    os._exit(1)
