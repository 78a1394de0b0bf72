"""Signals end a run between two steps, on all hosts after the same one: the first asks, a second one stops at once."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator

from iterpref_jax.parallel import distributed
from iterpref_jax.progress import warn

# SIGTERM: TPU VMs, Kubernetes and `scancel`; SIGUSR1: `sbatch --signal=USR1@SECONDS`, ahead of a time limit.
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@contextlib.contextmanager
def stop_requested(first: str = "finishing this step, then saving") -> Iterator[Callable[[], bool]]:
    """Yields a function that tells whether one of `STOPS` has come; restores the handlers afterwards.

    `first` says what happens now.
    """
    came: list[int] = []

    def handler(number: int, frame) -> None:
        if came:
            signal.default_int_handler(number, frame)
        came.append(number)
        warn(f"{signal.Signals(number).name}: {first} (once more to stop at once)")

    previous = {number: signal.signal(number, handler) for number in STOPS}
    try:
        yield lambda: bool(came)
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


class Stop:
    """Whether to stop now, agreed by all hosts: a signal on one of them stops all after the same piece of work.

    Every host asks `at(number)` between two pieces, with numbers that grow by one, while the newest piece is in flight:
    of all earlier ones it has seen the results, which need every host. So whoever asks `at(n + 2)` has seen a piece
    that every host began after its own question at `n`: an offer of `n + 2` made there is seen in time by all, without
    a collective.
    """

    def __init__(self, should_stop: Callable[[], bool], what: str):
        self._should_stop, self._key = should_stop, f"stop/{what}"
        self._last: int | None = None
        self._asked = False

    def at(self, number: int) -> bool:
        """Returns whether the work ends with this piece."""
        if distributed.process_count() == 1:
            return self._should_stop()
        if self._should_stop() and not self._asked:
            self._asked = True
            distributed.offer(self._key, str(number + 2))
        if self._last is None:
            found = distributed.look(self._key)
            self._last = None if found is None else int(found)
        return self._last is not None and number >= self._last
