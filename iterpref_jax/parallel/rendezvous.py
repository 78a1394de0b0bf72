"""All processes meet at the coordinator's address before JAX starts there.

JAX aborts a process whose companions do not come, without saying which. Here each says its number; process 0 tells all
of them that everybody is there, or who is missing.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

from iterpref_jax.errors import UserError

_AGAIN_S = 0.2
_LINE_S = 10.0


def meet(coordinator: str, processes: int, process: int, timeout_s: float) -> None:
    """Returns when all processes are there.

    Raises:
        UserError: processes that did not come in time, came twice, or count differently.
    """
    host, _, port = coordinator.rpartition(":")
    deadline = time.monotonic() + timeout_s
    about = {"process": process, "processes": processes, "host": socket.gethostname()}
    if process:
        error = _join(host.strip("[]"), int(port), about, deadline, timeout_s)
    else:
        with _listening(int(port)) as server:
            error = _receive(server, about, deadline, timeout_s)
    if error:
        raise UserError(error)


@contextlib.contextmanager
def _listening(port: int) -> Iterator[socket.socket]:
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    try:
        server = socket.create_server(("", port), family=family, dualstack_ipv6=dual, backlog=1024)
    except OSError as error:
        raise UserError(
            f"process 0 cannot listen on port {port} ({error.strerror}); choose a free port for --coordinator"
        ) from error
    with server:
        yield server


def _receive(server: socket.socket, about: dict[str, Any], deadline: float, timeout_s: float) -> str:
    """Waits for the others and tells them the outcome, which it returns: an error, or nothing."""
    with contextlib.ExitStack() as connections:
        came: dict[int, tuple[socket.socket, str]] = {}
        error = ""
        while len(came) < about["processes"] - 1 and not error:
            server.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                connection = connections.enter_context(server.accept()[0])
            except TimeoutError:
                missing = sorted(set(range(1, about["processes"])) - came.keys())
                error = _missing(missing, about["processes"], timeout_s)
                break
            other = _read(connection)
            if other is not None:
                error = _conflict(other, about, came)
                came.setdefault(other["process"], (connection, other["host"]))
        for connection, _ in came.values():
            with contextlib.suppress(OSError):  # it has gone: the others find out by its silence
                connection.sendall(json.dumps({"error": error}).encode() + b"\n")
    return error


def _join(host: str, port: int, about: dict[str, Any], deadline: float, timeout_s: float) -> str:
    """Waits for process 0 and for what it says."""
    reason = "no answer"
    while time.monotonic() < deadline:
        try:
            with socket.create_connection((host, port), timeout=max(0.1, deadline - time.monotonic())) as connection:
                connection.sendall(json.dumps(about).encode() + b"\n")
                # Process 0 may have begun to wait later than this one.
                connection.settimeout(timeout_s + _LINE_S)
                answer = connection.makefile().readline()
                if answer:
                    return json.loads(answer)["error"]
                reason = "it hung up"
        except (OSError, ValueError) as error:
            reason = str(error)
        time.sleep(_AGAIN_S)
    return (
        f"process {about['process']} did not reach process 0 at {host}:{port} within {timeout_s:g} s ({reason}); see "
        "that process 0 runs on that host and that the port is open between the hosts, or raise hosts.start_timeout_s"
    )


def _read(connection: socket.socket) -> dict[str, Any] | None:
    """Returns what a process says of itself, or None for a visitor of another kind."""
    connection.settimeout(_LINE_S)
    try:
        other = json.loads(connection.makefile().readline(1000))
        return other if isinstance(other, dict) and {"process", "processes", "host"} <= other.keys() else None
    except (OSError, ValueError):
        return None


def _conflict(other: dict[str, Any], about: dict[str, Any], came: dict[int, tuple[socket.socket, str]]) -> str:
    number, host = other["process"], other["host"]
    if other["processes"] != about["processes"]:
        return (
            f"process {number} on {host} counts {other['processes']} processes, process 0 on {about['host']} "
            f"{about['processes']}: give all of them the same --processes"
        )
    if number in came:
        return f"process {number} came twice, from {came[number][1]} and {host}: give each its own --process"
    return ""


def _missing(numbers: list[int], processes: int, timeout_s: float) -> str:
    words = "process " if len(numbers) == 1 else "processes "
    return (
        f"{words}{', '.join(map(str, numbers))} of {processes} did not come within {timeout_s:g} s; look at what they "
        "printed, or raise hosts.start_timeout_s"
    )
