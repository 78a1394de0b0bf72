"""The style "stdin", inside the child: runs a script on texts, each in a fork of its own, and says what it printed.

The process that starts the forks runs nothing of the program. What should have been printed is not here, so there is
nothing to forge. A part of the harness that a request brings. Standard library only; no import of ours.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import gc
import os
import resource
import select
import signal
import sys
import time

CHUNK = 1 << 16
# Of the fields with which a fork says what went wrong.
SAID_BYTES = 1 << 16
SAID_FD = 3
# The event instead of what would follow.
NO_PROCESS_LEFT = "no_process_left"
# More than any process has. /proc, which lists them, is not there for the forks of every tier.
MOST_FDS = 1 << 16
# Longer than any run.
MOST_S = 3600.0


def judge(harness, report, free_reserve, sources: dict[str, str], fields: list[str]) -> None:
    """Reports `loaded`, a `case` each (number, status, what is wrong in 4 fields, seconds, stdout), and `done`."""
    output_bytes, *cases = fields
    outcome = harness.Outcome()
    try:
        labels = (harness.SETUP, harness.CODE)
        codes = [compile(sources[label], label, "exec", dont_inherit=True) for label in labels]
    except BaseException as error:
        free_reserve()
        outcome.blame(error, sources)
        report(harness.done_fields(outcome))
        os._exit(0)
    report(["loaded"])
    for number in range(len(cases) // 2):
        wall_s, text = cases[2 * number : 2 * number + 2]
        try:
            fork = _Fork(text)
        except _NoProcessLeft as error:
            # A later one may be kept by what the program has left behind.
            if number:
                raise
            report([NO_PROCESS_LEFT, str(error)])
            os._exit(0)
        if fork.pid == 0:
            _be_the_program(harness, codes, sources, free_reserve)
        case = fork.until_its_end(harness, float(wall_s), int(output_bytes))
        report(["case", str(number), *case])
    # Nothing has been compared yet.
    outcome.status = "no_tests"
    report(harness.done_fields(outcome))
    os._exit(0)


class _NoProcessLeft(Exception):
    """The user has as many processes as it may have."""


class _Fork:
    """One process that gets a text and whose output is read; `pid` is 0 in that process itself."""

    def __init__(self, text: str):
        stdin = os.memfd_create("stdin")
        data = memoryview(text.encode("utf-8", "surrogatepass"))
        while data:
            data = data[os.write(stdin, data) :]
        os.lseek(stdin, 0, os.SEEK_SET)
        (self._stdout, stdout), (self._said, said) = os.pipe(), os.pipe()
        for fd in (self._stdout, self._said):
            os.set_blocking(fd, False)
        self._began = time.perf_counter()
        try:
            self.pid = os.fork()
        except OSError as error:
            raise _NoProcessLeft(error) from error
        if self.pid:
            for fd in (stdin, stdout, said):
                os.close(fd)
        else:
            # Its own group, to be killed as one; a tier may keep all of a run in its own group instead.
            with contextlib.suppress(PermissionError):
                os.setsid()
            _take_over(stdin, stdout, said)

    def until_its_end(self, harness, wall_s: float, output_bytes: int) -> list[str]:
        """Returns the fields of its case; the process and its group are gone then."""
        process, end = os.pidfd_open(self.pid), self._began + wall_s
        stdout, said = bytearray(), bytearray()
        pipes = {self._stdout: stdout, self._said: said}
        status = ""
        while not status:
            left = max(end - time.perf_counter(), 0)
            ready = select.select([process, *pipes], [], [], min(left, MOST_S))[0]
            # What a process printed last is there once it has ended; what its own forks print later is not waited for.
            is_over = process in ready
            while _drain(pipes) and is_over and len(stdout) <= output_bytes and len(said) <= SAID_BYTES:
                pass
            if len(stdout) > output_bytes or len(said) > SAID_BYTES:
                status = "output_limit"
            elif is_over:
                status = "ended"
            elif not left:
                status = "timeout"
        seconds = time.perf_counter() - self._began
        wrong = _wrong(harness, status, *self._kill(), bytes(said))
        for fd in (process, self._stdout, self._said):
            os.close(fd)
        return [*wrong, repr(seconds), bytes(stdout[:output_bytes]).decode("utf-8", "backslashreplace")]

    def _kill(self) -> tuple[int, float]:
        """Kills the group; returns exit code and CPU seconds of its first process, which is not reaped before."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            # It has not made its group yet.
            os.kill(self.pid, signal.SIGKILL)
        _, status, usage = os.wait4(self.pid, 0)
        return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime


def _drain(pipes: dict[int, bytearray]) -> bool:
    """Reads at most a chunk of each, and forgets those that are at their end; returns whether there was any."""
    found = False
    for fd, buffer in list(pipes.items()):
        try:
            data = os.read(fd, CHUNK)
        except BlockingIOError:
            continue
        buffer += data
        found = found or bool(data)
        if not data:
            del pipes[fd]
    return found


def signal_name(number: int) -> str:
    # Real-time signals, but the first and the last, have none.
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _wrong(harness, status: str, code: int, cpu_seconds: float, said: bytes) -> list[str]:
    """Returns the status of a case and what is wrong, in 4 fields."""
    if status == "timeout":
        return ["timeout", "Timeout", "stopped at its time limit", "", ""]
    if status == "output_limit":
        return ["output_limit", "OutputLimit", "printed too much", "", ""]
    spent = cpu_seconds > 0.9 * resource.getrlimit(resource.RLIMIT_CPU)[0]
    if code == -signal.SIGXCPU or (code == -signal.SIGKILL and spent):
        return ["timeout", "Timeout", "stopped at its limit of CPU time", "", ""]
    if code == -signal.SIGKILL:
        return ["memory_limit", "Killed", "killed, as for the memory of its group, or by itself", "", ""]
    if code < 0:
        return ["early_exit", "EarlyExit", f"the process ended early: {signal_name(-code)}", "", ""]
    if code:
        fields = harness.decode(said)
        return fields if len(fields) == 5 else ["error", "SystemExit", f"exit code {code}", "", ""]
    return ["no_tests", "", "", "", ""]


def _take_over(stdin: int, stdout: int, said: int) -> None:
    """Puts its files where a script expects them, and closes what is not its own, the report first of all."""
    null = os.open(os.devnull, os.O_WRONLY)
    # Copies above all numbers that are written to, so that none is lost.
    for place, fd in enumerate([_copy(fd) for fd in (stdin, stdout, null, said)]):
        os.dup2(fd, place, inheritable=place != SAID_FD)
    os.closerange(SAID_FD + 1, MOST_FDS)


def _copy(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD, SAID_FD + 1)


def _be_the_program(harness, codes, sources: dict[str, str], free_reserve) -> None:
    leave, encode, outcome, code = os._exit, harness.encode, harness.Outcome(), 0
    write = os.write
    try:
        _run(harness, codes)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException as error:
        free_reserve()
        outcome.blame(error, sources)
        write(SAID_FD, encode(outcome.fields()[:5]))
        code = 1
    leave(code & 0xFF)


def _run(harness, codes) -> None:
    """A script, and what an interpreter does after its last line: waits for threads, calls exit functions, flushes."""
    space, stdout = harness.module("__main__"), sys.stdout
    try:
        for code in codes:
            exec(code, space)
    finally:
        threading = sys.modules.get("threading")
        if threading:
            threading._shutdown()
        atexit._run_exitfuncs()
        _flush(sys.stdout)
        # Files that nobody closed write what they hold when they go.
        space.clear()
        gc.collect()
        _flush(stdout)


def _flush(stream) -> None:
    # A program may have put anything in the place of stdout.
    if stream is not None and not getattr(stream, "closed", False) and hasattr(stream, "flush"):
        stream.flush()
