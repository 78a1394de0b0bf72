"""The HTTP server: a socket that is bound before the model loads, and an end with status 0 on SIGTERM or Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Iterator
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from iterpref_jax.errors import UserError
from iterpref_jax.progress import say


def bind(host: str, port: int) -> socket.socket:
    """Returns a socket at `host`:`port` that does not listen yet; port 0 takes a free one.

    Raises:
        UserError: an unknown host, a port that is taken or not allowed.
    """
    # Beyond them getaddrinfo counts from 0 again.
    if not 0 <= port < 1 << 16:
        raise UserError(f"cannot serve at --host={host} --port={port}: ports are 0 (a free one) to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with contextlib.ExitStack() as unless_bound:
            bound = unless_bound.enter_context(socket.socket(family, kind, protocol))
            # A server that ended a moment ago does not keep its port.
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            unless_bound.pop_all()
    except OSError as error:
        raise UserError(f"cannot serve at --host={host} --port={port}: {error}; choose another port") from error
    return bound


def url(bound: socket.socket) -> str:
    """Returns the address that clients use, such as http://127.0.0.1:8000/v1."""
    host, port = bound.getsockname()[:2]
    return f"http://{f'[{host}]' if bound.family == socket.AF_INET6 else host}:{port}/v1"


def run(app: ASGIApp, bound: socket.socket, *, grace_s: int) -> None:
    """Serves until SIGTERM or Ctrl-C; running requests then have `grace_s` seconds to finish."""
    # Its messages of level INFO repeat our own lines; warnings and errors still reach stderr.
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="on", timeout_graceful_shutdown=grace_s)
    _Server(config, grace_s).run(sockets=[bound])


class _Server(uvicorn.Server):
    """uvicorn's server; it raises a signal once more after a clean end, which would be no exit with status 0."""

    def __init__(self, config: uvicorn.Config, grace_s: int):
        super().__init__(config)
        self._grace_s = grace_s

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        previous = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, old in previous.items():
                signal.signal(number, old)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            # As at the end of the grace. uvicorn's own `force_exit` leaves the app without its end.
            for task in list(self.server_state.tasks):
                task.cancel()
            return
        self.should_exit = True
        name = signal.Signals(sig).name
        say(f"{name}: no new requests; running ones have {self._grace_s} s to finish (once more to cut them off)")
