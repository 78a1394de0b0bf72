"""One item in flight: while the devices compute it, the host reads the one before and fetches the next batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Generic, NamedTuple, TypeVar

import jax

from iterpref_jax.data.batch import RowBatch
from iterpref_jax.train.metrics import Work
from iterpref_jax.train.step import Metrics

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


class Clock:
    """The time from one update's end to the next one's, and how much of it the devices waited for input."""

    def __init__(self):
        self.restart()

    def restart(self) -> None:
        """Leaves out what was done since the last lap: an evaluation, a checkpoint."""
        self._since, self._waited = time.monotonic(), 0.0

    def lap(self) -> tuple[float, float]:
        """Returns the seconds since the last lap, and those of them that were waits."""
        seconds, waited = time.monotonic() - self._since, self._waited
        self.restart()
        return seconds, waited

    def fetched(self, batches: Iterator[RowBatch], flight: Flight) -> Iterator[RowBatch]:
        """Yields the batches; a wait counts if the devices had nothing else to do at its end."""
        while True:
            began = time.monotonic()
            batch = next(batches, None)
            if batch is None:
                return
            self._waited += time.monotonic() - began if flight.has_landed else 0.0
            yield batch
