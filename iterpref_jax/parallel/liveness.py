"""When one process ends, all end, with a message: a process that failed says so, one that vanished is missed.

JAX's heartbeats find out who vanished. Its own answer is to abort, or to wait in a collective for ever.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax

from iterpref_jax.errors import GO_ON, UserError
from iterpref_jax.parallel import distributed
from iterpref_jax.parallel.host_settings import DistributedSettings
from iterpref_jax.progress import speak_for, warn

# How long a process has to say in its own words what all of them found wrong, before it is ended.
_GRACE_S = 5.0
_FAILED = "failed"


@contextlib.contextmanager
def together(settings: DistributedSettings, advice: Callable[[], str]) -> Iterator[None]:
    """Runs the body as one of several processes that end together; alone, it is just the body.

    An error in one process is told to all, which end within seconds (exit status 1). A process that vanishes ends the
    others within `hosts.vanished_after_s` and a tenth (exit status `GO_ON`); they print `advice()`.
    """
    distributed.start(settings)
    speak_for(distributed.process_index())
    if distributed.process_count() == 1:
        yield
        return
    watch = _Watch(advice)
    try:
        yield
        distributed.barrier("end")
    except BaseException as error:
        watch.failed(error)
        # Until then the watch ends a process that hangs on its way out.
        atexit.register(watch.leave, jax.distributed.shutdown)
        raise
    watch.leave(distributed.stop)


class _Watch:
    """Two threads: one waits for the word that a process failed, one asks who is alive."""

    def __init__(self, advice: Callable[[], str]):
        self._advice, self._failure, self._closed = advice, "", threading.Event()
        self._ending = threading.Lock()
        self._on_abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._aborted)
        # JAX aborts at once when the coordinator is gone; a handler in Python's own way would never be run.
        _set_abort_handler(self._on_abort)
        self._threads = [
            threading.Thread(target=self._guarded, args=(loop,), daemon=True, name=f"hosts{loop.__name__}")
            for loop in (self._listen, self._count)
        ]
        for thread in self._threads:
            thread.start()

    def leave(self, stop: Callable[[], None]) -> None:
        """Ends the watch, because whoever goes now has finished; then `stop`s JAX's service, which wakes the threads.

        A thread that came back from JAX while the interpreter ends would be unwound through C++, which aborts, and the
        handler of that could not run: the process would die of a signal after all else went well.
        """
        self._closed.set()
        stop()
        for thread in self._threads:
            thread.join(distributed.vanished_after_s())
        _set_abort_handler(None)

    def failed(self, error: BaseException) -> None:
        """Tells the others why this process ends; it then has a few seconds to do so by itself."""
        if self._closed.is_set():
            return
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            # A collective fails where a process has gone: then the watch ends this one, and says who it was.
            seconds = 1.2 * distributed.vanished_after_s() + _GRACE_S
            warn(f"the devices failed; up to {seconds:.0f} s to see whether a process vanished")
            self._closed.wait(seconds)
        text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}".split("\n")[0]
        who = distributed.described(distributed.process_index())
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # the coordinator has gone, and the others with it
            distributed.offer(_FAILED, f"{who} ended: {text}")
        status = 130 if isinstance(error, KeyboardInterrupt) else 1
        # Threads of a collective or a checkpoint may keep the interpreter from ending.
        late = threading.Timer(3 * _GRACE_S, os._exit, (status,))
        late.daemon = True
        late.start()
        if distributed.is_main():
            # The coordinator ends with this process: the others must have read why.
            time.sleep(2.0)

    def _guarded(self, loop: Callable[[], None]) -> None:
        try:
            loop()
        except jax.errors.JaxRuntimeError as error:
            if not self._closed.is_set():
                self._lost_coordinator(str(error).split("\n")[0])

    def _listen(self) -> None:
        while not self._closed.is_set():
            found = distributed.wait_for(_FAILED, seconds=60)
            if found is not None:
                self._failure = found
                self._closed.wait(_GRACE_S)
                self._end(found, 1)

    def _count(self) -> None:
        everybody = list(range(distributed.process_count()))
        while not self._closed.wait(max(0.5, distributed.vanished_after_s() / 20)):
            missing = sorted(set(everybody) - set(distributed.alive(everybody)))
            if missing and not self._closed.is_set():
                names = " and ".join(distributed.described(process) for process in missing)
                self._closed.wait(0.5)  # for the word of a process that failed
                self._end(f"{names}: no sign of life for {distributed.vanished_after_s()} s", GO_ON)

    def _lost_coordinator(self, reason: str) -> None:
        self._end(f"process 0, the coordinator, cannot be reached ({reason})", GO_ON)

    def _aborted(self, number: int) -> None:
        if not self._closed.is_set() and not distributed.reaches_coordinator():
            self._lost_coordinator("connection lost")

    def _end(self, reason: str, status: int) -> NoReturn:
        """Ends this process whatever its main thread waits for."""
        with self._ending:
            if self._closed.is_set():
                sys.exit()
            # Whoever failed says what to do.
            advice = "" if self._failure else f". {self._advice()}"
            warn(f"error: {self._failure or reason}; this process ends too{advice}")
            sys.stderr.flush()
            os._exit(1 if self._failure else status)


def _set_abort_handler(handler: Any) -> None:
    """Sets a C function for SIGABRT; None: what the system does."""
    ctypes.CDLL(None).signal(int(signal.SIGABRT), handler)
