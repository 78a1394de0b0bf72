"""One item in flight: while the devices compute it, the host reads the one before and fetches the next batch."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

import jax

from iterpref_jax.data.batch import RowBatch
from iterpref_jax.train.metrics import Work
from iterpref_jax.train.pace import Pace
from iterpref_jax.train.step import Metrics
from iterpref_jax.train.tally import Tally

Item = TypeVar("Item")


class Update(NamedTuple):
    """An update that was handed to the devices: its number, its metrics when they come, and what it computes."""

    number: int
    metrics: Metrics
    work: Work


class Flight(Generic[Item]):
    """Holds back the newest item, which the devices compute; `read` gets each one, in order, when it is waited for."""

    def __init__(self, read: Callable[[Item], None]):
        self._read = read
        self._newest: Item | None = None

    def put(self, item: Item) -> None:
        """Reads the item before this one, while the devices compute this one."""
        before, self._newest = self._newest, item
        if before is not None:
            self._read(before)

    def land(self) -> None:
        """Reads what is left: afterwards everything that was computed has been checked."""
        left, self._newest = self._newest, None
        if left is not None:
            self._read(left)

    @property
    def has_landed(self) -> bool:
        """Whether the devices have nothing to do."""
        return all(x.is_ready() for x in jax.tree.leaves(self._newest) if hasattr(x, "is_ready"))

    def landing(self) -> Landing:
        """Watches the newest item until the devices are done with it."""
        return Landing(self._newest)


class Landing:
    """When the devices are done with something: `at`, a `time.monotonic()`, or None until then."""

    def __init__(self, arrays: Any):
        self.at: float | None = None
        self._arrays = arrays
        threading.Thread(target=self._wait, name="landing", daemon=True).start()

    def _wait(self) -> None:
        # What fails on the devices is raised where the item is read.
        with contextlib.suppress(Exception):
            jax.block_until_ready(self._arrays)
        self.at = time.monotonic()


class Lap(NamedTuple):
    """Seconds from one update's end to the next one's; of them, those in which the devices waited for input."""

    seconds: float
    input_wait: float


class Clock:
    """The time from one update's end to the next one's: what of it were waits, and for what."""

    def __init__(self, tally: Tally):
        self._tally = tally
        self._input_wait = self._device_wait = 0.0
        self._first = True
        self.pace = Pace()

    def restart(self, part: str) -> None:
        """Leaves out what was done since the last lap; the tally counts it as `part`."""
        self._tally.ends(part)
        self._input_wait = self._device_wait = 0.0

    def lap(self) -> Lap:
        """Ends an update."""
        lap = Lap(self._tally.ends("update", input_wait=self._input_wait), self._input_wait)
        # The first update compiles.
        if not self._first:
            self.pace.add(lap.seconds, self._input_wait, self._device_wait)
        self._first = False
        self._input_wait = self._device_wait = 0.0
        return lap

    @contextlib.contextmanager
    def waits_for_devices(self) -> Iterator[None]:
        """Within it, this host has nothing to do but to wait for an update's results."""
        began = time.monotonic()
        yield
        self._device_wait += time.monotonic() - began

    def fetched(self, batches: Iterator[RowBatch], flight: Flight) -> Iterator[RowBatch]:
        """Yields the batches; a wait counts from when the devices had nothing else to do."""
        while True:
            began, landing = time.monotonic(), None if flight.has_landed else flight.landing()
            batch = next(batches, None)
            if batch is None:
                return
            ended = time.monotonic()
            idle = began if landing is None else ended if landing.at is None else landing.at
            self._input_wait += max(0.0, ended - idle)
            yield batch
