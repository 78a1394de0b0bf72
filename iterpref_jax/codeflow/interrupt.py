"""SIGTERM, which schedulers send, ends work as Ctrl-C does."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from iterpref_jax.progress import say


@contextlib.contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """SIGTERM does within the block what Ctrl-C does; nothing changes in threads that get no signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def keeping(what: str) -> Iterator[None]:
    """Ends the work within the block at SIGTERM as at Ctrl-C; both say `what` is kept, and how to go on."""
    try:
        with sigterm_interrupts():
            yield
    except KeyboardInterrupt:
        say(f"stopped: {what}; run the same command again to go on")
        raise


def _interrupt(number: int, frame: FrameType | None) -> None:
    del number
    # An event loop has a handler of its own; jobs that a script has put into the background ignore Ctrl-C.
    handler = signal.getsignal(signal.SIGINT)
    (handler if callable(handler) else signal.default_int_handler)(signal.SIGINT, frame)
