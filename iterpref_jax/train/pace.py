"""Which host the others wait for: each host's share of its updates' time, and the memory in use, side by side.

All hosts end an update together, so their times for it are equal. What differs is how much of it a host needed itself
(`host_s`: its input, handing over, logging) and how much it waited for the devices, which is waiting for the slowest
host as well.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from iterpref_jax.train.memory_use import memory_use

Numbers = dict[str, float | None]

# A host lags if it alone takes this share of an update's time longer than the middle one.
LAGS = 0.1


class Pace:
    """Means over the updates since it was told last, seconds an update."""

    def __init__(self):
        self._updates, self._seconds, self._input_wait, self._device_wait = 0, 0.0, 0.0, 0.0

    def add(self, seconds: float, input_wait: float, device_wait: float) -> None:
        """Adds an update: its time, and how much of that the devices waited for input and this host for the devices."""
        self._updates += 1
        self._seconds += seconds
        self._input_wait += input_wait
        self._device_wait += device_wait

    def take(self) -> Numbers:
        """Returns this host's numbers, memory included, and starts anew; without updates their times are missing."""
        updates, times = self._updates, {}
        if updates:
            times = {
                "update_s": self._seconds / updates,
                "input_wait_s": self._input_wait / updates,
                "host_s": (self._seconds - self._device_wait) / updates,
            }
        self.__init__()
        return times | memory_use()


def side_by_side(hosts: Sequence[Numbers]) -> Numbers:
    """Returns one line about all hosts: the highest number of each name, and where there are several hosts the middle
    one (`NAME/median`, the lower of two) and whose the highest is (`NAME/process`).
    """
    found: Numbers = {"processes": len(hosts)}
    for name in hosts[0]:
        values = [host.get(name) for host in hosts]
        known = [value for value in values if value is not None]
        if not known:
            continue
        found[name] = max(known)
        if len(hosts) > 1:
            found[f"{name}/median"] = statistics.median_low(known)
            found[f"{name}/process"] = values.index(max(known))
    return found


def laggard(line: Numbers) -> tuple[int, str] | None:
    """Returns the process that the others wait for, as `side_by_side` shows it, and what it does."""
    update = line.get("update_s/median")
    for name, at_least, doing in (
        ("input_wait_s", 0.0, "waits for its input: look at its disk and at data.pipeline"),
        # What a host does while its devices compute costs nothing: only one that never waits for them is late.
        ("host_s", 1 - LAGS, "is late with handing over updates: look at what else runs there"),
    ):
        highest, middle = line.get(name), line.get(f"{name}/median")
        if update is None or highest is None or middle is None or highest < at_least * update:
            continue
        if highest - middle > LAGS * update:
            process = int(line[f"{name}/process"] or 0)
            times = f"{highest:.2f} s of {update:.2f} s an update, the middle one {middle:.2f} s"
            return process, f"{doing} ({name}: {times})"
    return None
