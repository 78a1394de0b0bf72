"""Warm interpreters that wait for programs: each forks its runs, one at a time, in a bubblewrap of its own (`zygote`).

A lane that died, that says what it should not, or that has served long is closed and another one started. It ends with
its control socket, so none outlives this process, however that ends.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

from iterpref_jax.codeflow.sandbox import child, seccomp, zygote
from iterpref_jax.codeflow.sandbox.child import Ended, Pipes, Run, Talk

# Imports of a large package take their time.
START_S = 60.0
# The addresses of an interpreter are those of all its forks: after so many runs, others are drawn.
MOST_RUNS = 1000
# A lane has one hash seed. So many wait for each that was busy at a time, for their seeds to come again.
KEPT = 4
# What programs and tests usually import. A fork costs more, the more is there.
USUAL = ("unittest", "collections", "copy", "functools", "heapq", "itertools", "json", "math", "random", "re", "typing")
SAID_BYTES = 4096

# Gives the command that starts a lane, from the descriptors of its control socket, its filter and bubblewrap's word.
Command = Callable[[int, int, int], Sequence[str]]


class Lane:
    """One warm interpreter. Called from one thread at a time; `close` may be called twice."""

    def __init__(self, command: Command, env: Mapping[str, str]):
        """Raises OSError, with what was said, where it does not start."""
        self.runs = 0
        with contextlib.ExitStack() as opened:
            self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._said = os.fdopen(os.memfd_create("said"), "r+b")
            self._info, info = os.pipe()
            os.set_blocking(self._info, False)
            for end in (self._control, self._said, os.fdopen(self._info, "rb")):
                opened.enter_context(end)
            with theirs, os.fdopen(seccomp.open_program(), "rb") as filtered, os.fdopen(info, "wb"):
                fds = theirs.fileno(), filtered.fileno(), info
                self._process = _start(command(*fds), env, self._said.fileno(), fds)
            opened.callback(self._kill)
            self._control.settimeout(START_S)
            if self._hear() != zygote.READY:
                raise self._broken("it did not start")
            self._opened = opened.pop_all()

    def close(self) -> None:
        self._opened.close()

    def is_ready(self) -> bool:
        """A lane that says something unasked has ended, or is none of ours."""
        return self.runs < MOST_RUNS and not self._speaks(within_s=0)

    def run(self, run: Run, ids: tuple[int, int], entrances: Sequence[int]) -> Ended:
        """Sends `[token, report_fd, *request]` to a new process with these ids; returns once that is over and gone.

        `entrances` are descriptors of its cgroup's. Raises OSError where the lane has failed; it is to be closed then,
        as after any other exception.
        """
        self.runs += 1
        self._control.settimeout(child.GONE_S)
        with Pipes() as pipes:
            theirs = [pipe.fileno() for pipe in pipes.theirs]
            self._tell("{} {}".format(*ids).encode(), [*theirs, *entrances])
            pipes.close_theirs()
            talk = Talk(pipes, zygote.REPORT, run)
            by = talk.until_its_end()
            if by == "exit":
                self._speaks(within_s=child.LAST_WORDS_S)
            self._tell(zygote.END)
            returncode, cpu_seconds = self._end()
        return talk.ended(by, returncode=returncode, cpu_seconds=cpu_seconds)

    def _speaks(self, *, within_s: float) -> bool:
        # Not `select`, which knows no descriptor above 1,023: every lane that waits keeps three.
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        return bool(poll.poll(1000 * within_s))

    def _end(self) -> tuple[int, float]:
        said = self._hear()
        try:
            code, cpu_seconds = said.split()
            return int(code), float(cpu_seconds)
        except ValueError:
            raise self._broken(f"it answered {said!r}") from None

    def _tell(self, message: bytes, fds: Sequence[int] = ()) -> None:
        try:
            socket.send_fds(self._control, [message], fds)
        except OSError as error:
            raise self._broken(f"it does not listen ({error})") from None

    def _hear(self) -> bytes:
        try:
            return self._control.recv(SAID_BYTES)
        except OSError as error:
            raise self._broken(f"it did not answer ({error})") from None

    def _broken(self, what: str) -> OSError:
        self._said.seek(0)
        words = self._said.read()[-SAID_BYTES:].decode("utf-8", "backslashreplace").strip()
        return OSError(f"the warm interpreter is gone: {what}" + (f": {words}" if words else ""))

    def _kill(self) -> None:
        """Kills the first process of the pid namespace, with which all others of it go, and bubblewrap behind it."""
        # While bubblewrap lives, no other process can have been given the number of its child.
        with contextlib.suppress(BlockingIOError, ProcessLookupError):
            found = re.search(rb'"child-pid": *(\d+)', os.read(self._info, SAID_BYTES))
            if found and self._process.poll() is None:
                os.kill(int(found[1]), signal.SIGKILL)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(child.GONE_S)
        self._process.kill()
        self._process.wait()


def _start(command: Sequence[str], env: Mapping[str, str], said: int, fds: Sequence[int]) -> subprocess.Popen:
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=said,
        cwd="/",
        env=env,
        pass_fds=fds,
        start_new_session=True,
    )


class Lanes:
    """Lanes by hash seed: taken one at a time, from any thread, started where none waits."""

    def __init__(self, start: Callable[[int], Lane]):
        self._start, self._lock = start, threading.Lock()
        # The one that waits longest is the first.
        self._waiting: list[tuple[int, Lane]] = []
        self._busy = self._most_busy = 0

    @contextlib.contextmanager
    def lane(self, hash_seed: int) -> Iterator[Lane]:
        """Gives a lane for one run; one in which something was raised is closed."""
        lane = self._take(hash_seed)
        try:
            yield lane
        except BaseException:
            self._leave()
            lane.close()
            raise
        self._leave()
        with self._lock:
            self._waiting.append((hash_seed, lane))
            surplus = self._waiting[: -KEPT * self._most_busy]
            del self._waiting[: len(surplus)]
        for _, old in surplus:
            old.close()

    def close(self) -> None:
        """Ends the lanes that wait: all, when no run is under way."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
        for _, lane in waiting:
            lane.close()

    def _take(self, hash_seed: int) -> Lane:
        with self._lock:
            self._busy += 1
            self._most_busy = max(self._most_busy, self._busy)
        try:
            while (lane := self._waiting_for(hash_seed)) and not lane.is_ready():
                lane.close()
            return lane or self._start(hash_seed)
        except BaseException:
            self._leave()
            raise

    def _waiting_for(self, hash_seed: int) -> Lane | None:
        with self._lock:
            places = [place for place, (seed, _) in enumerate(self._waiting) if seed == hash_seed]
            return self._waiting.pop(places[-1])[1] if places else None

    def _leave(self) -> None:
        with self._lock:
            self._busy -= 1
