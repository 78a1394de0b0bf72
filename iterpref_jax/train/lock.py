"""One training run a folder: a lock of the kernel's where there is one, else a file with a heartbeat (buckets)."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

from iterpref_jax.errors import UserError
from iterpref_jax.locks import NO_LOCKS
from iterpref_jax.progress import say
from iterpref_jax.train.remote import is_remote

FILE = ".lock"
# A holder in a bucket gives a sign of life every BEAT_S; without one for STALE_S it counts as dead.
BEAT_S, STALE_S = 10.0, 60.0
# Two that come at the same moment both write their name; after this long the later one stands there.
SETTLE_S = 3.0


@contextlib.contextmanager
def locked(workdir: epath.Path) -> Iterator[Callable[[], None]]:
    """Makes the folder and holds it; yields a function that raises if the lock was lost.

    The kernel frees the lock of a process that died. A bucket knows no locks: there whoever comes later watches the
    heartbeat of a lock that it finds for `STALE_S` before it takes it over.

    Raises:
        UserError: another run holds it, or the folder cannot be written to.
    """
    if is_remote(workdir):
        with Heartbeat(workdir / FILE).held() as check:
            yield check
        return
    with contextlib.ExitStack() as stack:
        file = _opened(stack, workdir)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _taken(workdir, _read(workdir / FILE)) from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            with Heartbeat(workdir / f"{FILE}.heartbeat").held() as check:
                yield check
            return
        file.seek(0)
        file.truncate()
        file.write(json.dumps(_me()))
        file.flush()
        yield lambda: None


def _opened(stack: contextlib.ExitStack, workdir: epath.Path) -> Any:
    """Opens the lock's file; what stands in it stays until the lock is held."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        return stack.enter_context(open(workdir / FILE, "a+"))
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST):
            raise
        raise UserError(
            f"--workdir={workdir} cannot be written to ({error.strerror}: {error.filename}); a run writes metrics and "
            "checkpoints there: choose a folder that this user may write to"
        ) from error


class Heartbeat:
    """A lock that is a file: who holds it writes a new number into it every `BEAT_S`."""

    def __init__(self, path: epath.Path):
        self._path, self._me = path, _me() | {"token": secrets.token_hex(8)}
        self._lost: UserError | None = None
        self._released = threading.Event()

    @contextlib.contextmanager
    def held(self) -> Iterator[Callable[[], None]]:
        """Holds the lock; yields a function that raises if it was lost. See `locked` for the errors."""
        self._wait_for_the_dead()
        self._write(0)
        time.sleep(SETTLE_S)
        if not self._is_mine():
            raise _taken(self._path.parent, _read(self._path))
        beating = threading.Thread(target=self._beat, name="lock", daemon=True)
        beating.start()
        try:
            yield self._check
        finally:
            self._released.set()
            beating.join()
            if self._lost is None and self._is_mine():
                self._path.unlink()

    def _wait_for_the_dead(self) -> None:
        """Returns once there is no holder, or none that lives."""
        first = _read(self._path)
        if not first:
            return
        say(f"{self._path} is held by {_described(first)}; waiting {STALE_S:.0f} s for a sign of life")
        end = time.monotonic() + STALE_S
        while time.monotonic() < end:
            time.sleep(min(BEAT_S, STALE_S) / 4)
            found = _read(self._path)
            if not found:
                return
            if found != first:
                raise _taken(self._path.parent, found)
        say(f"{_described(first)} gave none: going on without it")

    def _beat(self) -> None:
        number, last = 0, time.monotonic()
        while not self._released.wait(BEAT_S):
            try:
                mine = self._is_mine()
                if mine:
                    number += 1
                    self._write(number)
                    last = time.monotonic()
            except OSError as error:
                # A network that fails for a moment; after STALE_S another run may believe that this one is dead.
                if time.monotonic() - last < STALE_S:
                    continue
                self._lost = UserError(f"{self._path} could not be renewed for {STALE_S:.0f} s ({error})")
                return
            if not mine:
                self._lost = _taken(self._path.parent, _read(self._path))
                return

    def _check(self) -> None:
        if self._lost is not None:
            raise self._lost

    def _is_mine(self) -> bool:
        return _read(self._path).get("token") == self._me["token"]

    def _write(self, beat: int) -> None:
        self._path.write_text(json.dumps(self._me | {"beat": beat}))


def _read(path: epath.Path) -> dict[str, Any]:
    """Returns who holds a lock, nothing where there is no file; of a half written one, its text."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return {}
    try:
        found = json.loads(text)
    except ValueError:
        return {"text": text} if text else {}
    return found if isinstance(found, dict) else {"text": text}


def _me() -> dict[str, Any]:
    return {"host": socket.gethostname(), "process": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S %Z")}


def _described(holder: dict[str, Any]) -> str:
    if "process" not in holder:
        return "another process"
    return f"process {holder['process']} on {holder.get('host')}, since {holder.get('since')}"


def _taken(workdir: epath.Path, holder: dict[str, Any]) -> UserError:
    return UserError(
        f"another process is training in {workdir}: {_described(holder)}; wait for it, stop it, or use another "
        "--workdir"
    )
