"""A server of the current model for as long as a round writes programs."""

from __future__ import annotations

import contextlib
import http.client
import os
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from iterpref_jax.child import bound
from iterpref_jax.errors import UserError
from iterpref_jax.progress import say

HOST = "127.0.0.1"
TAIL = 2000
# A server that was asked to end has so many seconds.
END_S = 30.0


@contextlib.contextmanager
def serving(command: Sequence[str], port: int, log: Path, start_s: float) -> Iterator[str]:
    """Starts a server and yields its URL once it answers; its output goes to `log`. It ends with the block.

    Raises UserError if it ends before, does not answer within `start_s` seconds, or cannot be started.
    """
    say(f"serving the model: {shlex.join(command)} (its output: {log})")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        if shutil.which(command[0]) is None:
            raise UserError(f"rounds.serve: {command[0]}: no such command; is it installed here?")
        running = subprocess.Popen(bound(command), stdout=output, stderr=output, start_new_session=True)
        try:
            _await(running, port, log, start_s)
            yield f"http://{HOST}:{port}/v1"
        finally:
            _end(running)


def free_port() -> int:
    """Returns a port that nothing listens at now."""
    with socket.create_server((HOST, 0)) as bound:
        return bound.getsockname()[1]


def _end(running: subprocess.Popen) -> None:
    """Asks the server to end, and kills what is left of its session: servers of large models have processes below."""
    try:
        running.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.wait(END_S)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        running.wait()


def _await(running: subprocess.Popen, port: int, log: Path, start_s: float) -> None:
    deadline = time.monotonic() + start_s
    while not _answers(port):
        if running.poll() is not None:
            raise UserError(f"the server ended with status {running.returncode}: {_tail(log)}")
        if time.monotonic() > deadline:
            raise UserError(f"the server did not answer within {start_s:g} s (rounds.start_s); its output: {log}")
        time.sleep(0.2)


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", "/v1/models")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _tail(log: Path) -> str:
    return log.read_bytes()[-TAIL:].decode("utf-8", "backslashreplace").strip()
