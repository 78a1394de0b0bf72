"""Users who own nothing: a parent that is root gives each run another one."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

# Each run has one of its own, so that no run counts another's processes.
FIRST_UID, UIDS = 2_000_000_000, 100_000_000


def ids() -> Iterator[tuple[int, int]]:
    """Yields (uid, gid) for the runs of this process."""
    for run in itertools.count(os.getpid() * 1000):
        uid = FIRST_UID + run % UIDS
        yield uid, uid
