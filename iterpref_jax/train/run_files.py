"""The small files of a run (metrics, TensorBoard, report): in its folder, or for a bucket in a local copy of them.

Files that grow line by line cannot be appended to in a bucket. They are written to a folder of this machine, which is
fetched from the bucket at the start and sent there again every `EVERY_S`, before every checkpoint, and at the end. So a
checkpoint's metrics are always there before it is.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from etils import epath

from iterpref_jax.progress import warn
from iterpref_jax.train.remote import is_remote

EVERY_S = 60.0
# What is read and written in the bucket itself.
_SHARED = ("checkpoints", "reference", "config.json")


class RunFiles:
    """Where the small files of a run are written."""

    def __init__(self, workdir: epath.Path):
        self._shared = workdir
        self._copy: Path | None = None
        # (size, time) of what was fetched or sent last.
        self._sent: dict[str, tuple[int, int]] = {}
        self._lock = threading.Lock()
        self._check: Callable[[], None] = lambda: None

    @property
    def local(self) -> Path:
        """The folder to write to; of a run in a bucket, only within `mirrored`."""
        if not is_remote(self._shared):
            return Path(self._shared)
        assert self._copy is not None
        return self._copy

    def commit(self) -> None:
        """Returns when all that was written until now is in the run's folder.

        Raises:
            UserError: another run has taken the folder.
        """
        self._check()
        if is_remote(self._shared):
            self._send()

    @contextlib.contextmanager
    def mirrored(self, *, check: Callable[[], None] = lambda: None, fetch: bool = True) -> Iterator[None]:
        """Keeps the copy of a folder in a bucket: fetched first (unless it is only written to), sent at the end.

        `check` raises if the folder is no longer this run's; nothing is sent then. Of a local folder there is no copy.
        """
        self._check = check
        if not is_remote(self._shared):
            yield
            return
        parent = Path(tempfile.mkdtemp(prefix="iterpref-"))
        self._copy = parent / self._shared.name
        self._copy.mkdir()
        if fetch:
            self._fetch(self._shared, self._copy)
        done = threading.Event()
        sender = threading.Thread(target=self._send_often, args=(done,), name="run files", daemon=True)
        sender.start()
        try:
            yield
        finally:
            done.set()
            sender.join()
            self._send_last()
        shutil.rmtree(parent)

    def _send_last(self) -> None:
        try:
            self.commit()
        except Exception:
            warn(f"the last metrics were not sent to {self._shared}; they are in {self._copy}")
            raise

    def _send_often(self, done: threading.Event) -> None:
        while not done.wait(EVERY_S):
            try:
                self.commit()
            except Exception as error:
                # Said again, and raised, where a checkpoint or the end needs it.
                warn(f"metrics wait to be sent to {self._shared}: {type(error).__name__}: {error}")

    def _send(self) -> None:
        """Writes what has changed since the last time."""
        with self._lock:
            for path in sorted(path for path in self.local.rglob("*") if path.is_file()):
                name = path.relative_to(self.local).as_posix()
                now = _version(path)
                if self._sent.get(name) != now:
                    self._write(path, self._shared / name)
                    self._sent[name] = now

    def _write(self, path: Path, to: epath.Path) -> None:
        to.parent.mkdir(parents=True, exist_ok=True)
        # A bucket's object is replaced as a whole, once it is closed.
        with path.open("rb") as source, to.open("wb") as target:
            shutil.copyfileobj(source, target)

    def _fetch(self, folder: epath.Path, to: Path) -> None:
        for path in folder.iterdir() if folder.exists() else ():
            name = path.name
            if name.startswith(".") or (folder == self._shared and name in _SHARED):
                continue
            if path.is_dir():
                (to / name).mkdir()
                self._fetch(path, to / name)
                continue
            with path.open("rb") as source, (to / name).open("wb") as target:
                shutil.copyfileobj(source, target)
            self._sent[(to / name).relative_to(self.local).as_posix()] = _version(to / name)


def _version(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns
