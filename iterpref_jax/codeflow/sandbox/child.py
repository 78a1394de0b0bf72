"""One judged process, seen from the parent: start it, feed it, drain it, end it and all that it left behind."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import os
import secrets
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence

from iterpref_jax.codeflow.sandbox import harness

# Forked and re-sessioned descendants keep the environment that they were started with, so this name finds them.
MARKER = "ITERPREF_SANDBOX_RUN"
CHUNK = 1 << 16
TAIL_BYTES = 4096
# Of all reports of one run: more than the outputs of its cases should take.
REPORT_BYTES = 16 << 20
KILL_ROUNDS = 20
# From the start of a process to its `ready`, however busy the machine is; the program's own time begins there.
START_S = 60.0
# How often a run looks whether it is to be stopped.
LOOK_S = 0.1
# Between the end of a program and that of the process that started it for us.
LAST_WORDS_S = 2.0
# A killed process is gone when its memory is given back.
GONE_S = 10.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ended:
    """How a child ended: `by` is "done", "exit", "timeout", "output", "tampered" or "stopped"; `events` are the decoded
    lines."""

    by: str
    events: tuple[tuple[str, ...], ...]
    stderr_tail: str
    returncode: int
    seconds: float
    cpu_seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What a process is sent, how long its program has and how much that may print; `case_limits` are seconds per case,
    and once `stop` is set it ends."""

    request: Sequence[str]
    wall_s: float
    output_bytes: int
    case_limits: Sequence[float]
    stop: threading.Event | None


class Pipes:
    """The pipes of one run, for a `with` block. `theirs` are the process's ends: its 0, 1 and 2, and its report."""

    def __init__(self) -> None:
        with contextlib.ExitStack() as opened:
            (theirs, self.stdin), *outputs = [_pipe(opened) for _ in range(4)]
            self.stdout, self.stderr, self.report = (ours for ours, _ in outputs)
            self.theirs = (theirs, *(theirs for _, theirs in outputs))
            self._opened = opened.pop_all()

    def __enter__(self) -> Pipes:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def close_theirs(self) -> None:
        """To be called once the process has them: only then do we see it close them."""
        for pipe in self.theirs:
            pipe.close()


def _pipe(opened: contextlib.ExitStack) -> list[io.FileIO]:
    return [opened.enter_context(io.FileIO(fd, mode)) for fd, mode in zip(os.pipe(), "rw", strict=True)]


def run_child(
    command: Sequence[str],
    run: Run,
    *,
    env: Mapping[str, str],
    cwd: str,
    pass_fds: Sequence[int] = (),
    leash: io.FileIO | None = None,
) -> Ended:
    """Starts `command`, sends it `[token, report_fd, *request]` and returns once it is done, dead or stopped.

    It inherits `pass_fds` and nothing else. No Python-level fork is made, so this is safe from threads of a process
    that runs JAX. When the run is over, `leash` is closed, if there is one: the child sees that at its other end and
    has time to end what it started before it is killed. Raises OSError where the process cannot be started.
    """
    name = secrets.token_hex(16)
    with Pipes() as pipes:
        stdin, stdout, stderr, report = pipes.theirs
        talk = Talk(pipes, report.fileno(), run)
        child = subprocess.Popen(
            command,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            cwd=cwd,
            env={**env, MARKER: name},
            pass_fds=[report.fileno(), *pass_fds],
            start_new_session=True,
        )
        pipes.close_theirs()
        try:
            by = talk.until_its_end()
            _wait(child.pid, LAST_WORDS_S if by == "exit" else 0)
        finally:
            if leash is not None:
                leash.close()
                _wait(child.pid, GONE_S)
            returncode, cpu_seconds = _end(child, name)
    return talk.ended(by, returncode=returncode, cpu_seconds=cpu_seconds)


def unwrapped(ended: Ended) -> Ended:
    """Returns how the program ended whose starter ended with 128 + N, because signal N killed the program."""
    code = ended.returncode
    return dataclasses.replace(ended, returncode=128 - code if 128 < code < 160 else code)


def printable(text: str) -> str:
    """Lone surrogates cannot be written to a file; they become escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


class Talk:
    """What is said with one process; every pipe is drained at once, so that no side waits for a full one.

    The process is sent `[token, report, *request]`, with a token that is made here; `report` is its descriptor. It has
    `START_S` to say that it is ready, and its program the run's seconds from then on.
    """

    def __init__(self, pipes: Pipes, report: int, run: Run):
        token = secrets.token_hex(16)
        self._events: list[tuple[str, ...]] = []
        self._stderr_tail = b""
        self._stdin, self._token = pipes.stdin, token.encode()
        self._left = memoryview(harness.encode([token, str(report), *run.request]))
        self._room, self._buffer, self._stop = run.output_bytes, bytearray(), run.stop
        self._report_room, self._case_limits, self._case_end = REPORT_BYTES, iter(run.case_limits), math.inf
        self._began, self._wall_s = time.monotonic(), run.wall_s
        self._end, self._seconds = self._began + START_S, 0.0
        self._take = {
            pipes.stdout.fileno(): self._stdout,
            pipes.stderr.fileno(): self._stderr,
            pipes.report.fileno(): self._report,
        }

    def ended(self, by: str, *, returncode: int, cpu_seconds: float) -> Ended:
        """Returns what was said, with how it ended; its seconds are the program's, if that has begun."""
        return Ended(
            by=by,
            events=tuple(self._events),
            stderr_tail=printable(self._stderr_tail.decode("utf-8", "backslashreplace")),
            returncode=returncode,
            seconds=self._seconds,
            cpu_seconds=cpu_seconds,
        )

    def until_its_end(self) -> str:
        """Moves bytes until something ends the run; returns what did."""
        try:
            return self._until_its_end()
        finally:
            self._seconds = time.monotonic() - self._began

    def _until_its_end(self) -> str:
        with selectors.DefaultSelector() as selector:
            os.set_blocking(self._stdin.fileno(), False)
            selector.register(self._stdin.fileno(), selectors.EVENT_WRITE)
            for fd in self._take:
                selector.register(fd, selectors.EVENT_READ)
            while True:
                left = self._left_s()
                if self._stop is not None and self._stop.is_set():
                    return "stopped"
                # Whoever looks late takes what was said in time.
                for key, _ in selector.select(min(max(left, 0), LOOK_S)):
                    ended = self._send(selector) if key.fd not in self._take else self._receive(selector, key.fd)
                    if ended:
                        return ended
                if left <= 0 and self._left_s() <= 0:
                    return "timeout"

    def _left_s(self) -> float:
        return min(self._end, self._case_end) - time.monotonic()

    def _send(self, selector: selectors.BaseSelector) -> str:
        # A child that died early is noticed on its report pipe.
        with contextlib.suppress(BrokenPipeError):
            self._left = self._left[os.write(self._stdin.fileno(), self._left) :]
            if self._left:
                return ""
        selector.unregister(self._stdin.fileno())
        self._stdin.close()
        return ""

    def _receive(self, selector: selectors.BaseSelector, fd: int) -> str:
        data = os.read(fd, CHUNK)
        if not data:
            selector.unregister(fd)
        return self._take[fd](data)

    def _stdout(self, data: bytes) -> str:
        self._room -= len(data)
        return "output" if self._room < 0 else ""

    def _stderr(self, data: bytes) -> str:
        self._stderr_tail = (self._stderr_tail + data)[-TAIL_BYTES:]
        return self._stdout(data)

    def _report(self, data: bytes) -> str:
        if not data:
            return "exit"
        self._report_room -= len(data)
        if self._report_room < 0:
            return "output"
        self._buffer += data
        if b"\n" in data:
            *lines, self._buffer = self._buffer.split(b"\n")
            for line in lines:
                if ended := self._event(bytes(line)):
                    return ended
        # What does not begin with the token is not waited for.
        return "" if self._buffer.startswith(self._token[: len(self._buffer)]) else "tampered"

    def _event(self, line: bytes) -> str:
        if not line.startswith(self._token + b"\t"):
            return "tampered"
        try:
            self._events.append(tuple(printable(field) for field in harness.decode(line)[1:]))
        except ValueError:
            return "tampered"
        said = self._events[-1][0]
        # What says it once more is not the harness.
        if said == "ready" and len(self._events) == 1:
            self._began = time.monotonic()
            self._end = self._began + self._wall_s
        if said in ("loaded", "case"):
            self._case_end = time.monotonic() + next(self._case_limits, math.inf)
        return "done" if said == "done" else ""


def _wait(pid: int, seconds: float) -> None:
    """Waits until a child has ended by itself, for its exit code says how; it is not reaped yet."""
    end = time.monotonic() + seconds
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None and time.monotonic() < end:
        time.sleep(0.001)


def _end(child: subprocess.Popen, name: str) -> tuple[int, float]:
    """Kills the session and every descendant that left it; returns the exit code and the CPU seconds of the child."""
    # The leader is not reaped yet, so the group's number cannot have been given to somebody else.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    for _ in range(KILL_ROUNDS):
        if not _kill_marked(f"{MARKER}={name}".encode()):
            break
    return child.returncode, usage.ru_utime + usage.ru_stime


def _kill_marked(marker: bytes) -> int:
    """Kills the processes whose environment at their start held `marker`; returns how many there were."""
    killed = 0
    if not os.path.isdir("/proc/self"):
        return 0
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        # Processes of others are unreadable, and any may end while we look.
        with contextlib.suppress(OSError):
            fd = os.open(f"/proc/{name}/environ", os.O_RDONLY)
            try:
                found = marker in os.read(fd, CHUNK)
            finally:
                os.close(fd)
            if found:
                os.kill(int(name), signal.SIGKILL)
                killed += 1
    return killed
