"""Where the seconds of a command go: each of them into one part."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterator

import jax

# Of these, only `update` is what the run is for. `input_wait`: the devices had nothing to do; `checkpoint`: the part of
# saving that updates wait for; `start`: until the weights and the optimizer's state are there.
PARTS = ("update", "input_wait", "compile", "evaluation", "checkpoint", "reference", "start", "other")
_COMPILING = "/jax/core/compile/"


class Tally:
    """Whoever ends a piece of work says what it was: all seconds since the piece before go into that part.

    What JAX compiled meanwhile goes into `compile`, whatever the piece (while `hears_compilation`).
    """

    def __init__(self, began: float | None = None):
        """Counts from `began`, a `time.monotonic()`; by default from now."""
        self.began = self._last = time.monotonic() if began is None else began
        self._spent: Counter[str] = Counter()
        self._compiled = _Spans()
        # The ledger looks from a thread of its own.
        self._lock = threading.Lock()

    def ends(self, part: str, *, input_wait: float = 0.0) -> float:
        """Returns the seconds since the piece before; `input_wait` of them were waits."""
        now = time.monotonic()
        with self._lock:
            seconds, self._last = now - self._last, now
            compiled = min(self._compiled.take(), seconds - input_wait)
            self._spent.update({"compile": compiled, "input_wait": input_wait, part: seconds - input_wait - compiled})
        return seconds

    def seconds(self) -> tuple[float, dict[str, float]]:
        """Returns the seconds from the beginning until now, and those of every part; what runs now is in none yet."""
        with self._lock:
            return time.monotonic() - self.began, {part: self._spent[part] for part in PARTS}

    @contextlib.contextmanager
    def hears_compilation(self) -> Iterator[None]:
        """Listens to what JAX says of its compilations in this thread."""
        thread = threading.get_ident()

        def hear(event: str, duration_secs: float, **_: object) -> None:
            if event.startswith(_COMPILING) and threading.get_ident() == thread:
                self._compiled.add(time.monotonic(), duration_secs)

        jax.monitoring.register_event_duration_secs_listener(hear)
        try:
            yield
        finally:
            jax.monitoring.unregister_event_duration_listener(hear)


class _Spans:
    """The seconds that spans of time cover; a span may hold others, which came before it."""

    def __init__(self):
        self._spans: list[tuple[float, float]] = []

    def add(self, ended: float, seconds: float) -> None:
        began = ended - seconds
        while self._spans and self._spans[-1][0] >= began:
            self._spans.pop()
        self._spans.append((began, ended))

    def take(self) -> float:
        covered = sum(ended - began for began, ended in self._spans)
        self._spans.clear()
        return covered
