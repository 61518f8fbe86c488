"""The main program of the ranks that `launch` starts: no command line, the config comes from rank 0."""

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

    with explained(), suppress(Stopped):  # rank 0 reports it, and its exit status is the run's
        train(settings)


def end_with_rank_0() -> None:
    """End this process when rank 0 ends: rank 0 keeps this process's stdin open as long as it lives.

    Does not read through sys.stdin: a waiting reader would hold its lock, and a loader process forked
    meanwhile closes its copy and would wait for that lock for ever.
    """
    while os.read(0, 1024):
        pass
    os._exit(1)
