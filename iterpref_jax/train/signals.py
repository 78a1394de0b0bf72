"""SIGTERM and Ctrl-C end a run between two steps: the first asks, a second one stops at once."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator

from iterpref_jax.progress import say


@contextlib.contextmanager
def stop_requested(first: str = "finishing this step, then saving") -> Iterator[Callable[[], bool]]:
    """Yields a function that tells whether SIGTERM or SIGINT has come; restores the handlers afterwards.

    `first` says what happens now.
    """
    came: list[int] = []

    def handler(number: int, frame) -> None:
        if came:
            signal.default_int_handler(number, frame)
        came.append(number)
        say(f"{signal.Signals(number).name}: {first} (once more to stop at once)")

    previous = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(came)
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
