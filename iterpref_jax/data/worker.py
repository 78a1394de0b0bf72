"""What every worker process does first: it leaves signals to its parent, and ends with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


def begin() -> None:
    """Ctrl-C and Slurm's warning go to a whole group: the parent alone answers them and says how to end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # Without it, workers of a parent that was killed hard wait for work forever.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
