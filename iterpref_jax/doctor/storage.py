"""The folders of a run: can they be written, renamed in, locked, seen by all hosts, are they large and fast enough."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from etils import epath

from iterpref_jax.doctor.finding import Finding, fail, ok, warn

MIB, GIB = 2**20, 2**30
_TRIAL_BYTES = 32 * MIB
# Slower than this, a checkpoint of a 7B run with its optimizer (85 GiB) takes more than a quarter of an hour.
_LEAST_SPEED = 100 * MIB
_CLOCK_S = 5.0


def check_writing(folder: str, name: str, needed: int) -> list[Finding]:
    """Writes, reads, renames and locks in a trial folder below `folder`, which is made and removed again.

    `needed` are the bytes that a run will put there (0: not known).
    """
    if "://" in folder:
        return _guarded(name, folder, lambda: _remote(folder, name))
    made = _missing_parents(Path(folder).absolute())
    trial = Path(folder).absolute() / f".doctor-{secrets.token_hex(4)}"
    try:
        return _guarded(name, folder, lambda: _local(trial, name, needed))
    finally:
        shutil.rmtree(trial, ignore_errors=True)
        for parent in made:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()


def check_reading(folder: str, name: str) -> list[Finding]:
    """Reads the largest file of a folder, up to some MiB, and says how fast."""

    def read() -> list[Finding]:
        files = [path for path in epath.Path(folder).iterdir() if not path.is_dir()]
        if not files:
            return [fail(name, f"{folder} holds no file", "make it with `iterpref build`")]
        largest = max(files, key=lambda path: path.stat().length)
        began = time.monotonic()
        with largest.open("rb") as file:
            size = len(file.read(_TRIAL_BYTES))
        seconds = max(1e-6, time.monotonic() - began)
        return [ok(name, f"{folder}: {len(files)} files, read at {size / seconds / MIB:.0f} MiB/s")]

    return _guarded(name, folder, read)


def _local(trial: Path, name: str, needed: int) -> list[Finding]:
    trial.mkdir(parents=True)
    free = shutil.disk_usage(trial).free
    speed, problems = _speed(trial / "data"), []
    (trial / "data").replace(trial / "moved")
    if (trial / "data").exists() or not (trial / "moved").exists():
        problems.append(fail(name, "a rename did not move the file", "checkpoints need a file system with renames"))
    problems += _lock(trial / "lock", name) + _clock(trial / "lock", name) + _room(name, free, needed)
    if speed < _LEAST_SPEED:
        advice = (
            "checkpoints are saved in the background, but a save must end before the next: see train.checkpoint_every"
        )
        problems.append(warn(name, f"{trial.parent} writes only {speed / MIB:.0f} MiB/s", advice))
    text = f"{trial.parent}: written and read back at {speed / MIB:.0f} MiB/s, {free / GIB:.1f} GiB free"
    return [ok(name, text), *problems]


def _speed(path: Path) -> float:
    """Returns bytes a second of writing, with what is on disk at the end; raises OSError if they come back changed."""
    block = secrets.token_bytes(MIB)
    began = time.monotonic()
    with path.open("wb") as file:
        for _ in range(_TRIAL_BYTES // MIB):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    seconds = max(1e-6, time.monotonic() - began)
    with path.open("rb") as file:
        while chunk := file.read(MIB):
            if chunk != block:
                raise OSError(errno.EIO, "what was written came back changed", str(path))
    return _TRIAL_BYTES / seconds


def _lock(path: Path, name: str) -> list[Finding]:
    """A run locks its folder: a second lock of the same file must be refused."""
    with path.open("w") as first, path.open("w") as second:
        try:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            text = f"{path.parent.parent} does not lock files ({error.strerror})"
            return [warn(name, text, "nothing will stop two runs in one folder: start only one")]
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return []
    text = f"{path.parent.parent} grants one lock twice"
    return [warn(name, text, "nothing will stop two runs in one folder: start only one, or mount it with locks")]


def _clock(path: Path, name: str) -> list[Finding]:
    off = path.stat().st_mtime - time.time()
    if abs(off) < _CLOCK_S:
        return []
    return [warn(name, f"the file server's clock is {off:+.0f} s off this host's", "let both follow NTP")]


def _room(name: str, free: int, needed: int) -> list[Finding]:
    if not needed or free >= needed:
        return []
    text = f"{free / GIB:.1f} GiB are free, and checkpoints with one being saved take {needed / GIB:.1f} GiB"
    return [fail(name, text, "make room, use another --workdir, or keep fewer (train.keep_checkpoints)")]


def _remote(folder: str, name: str) -> list[Finding]:
    """Buckets have neither renames nor locks: an object is there whole or not at all."""
    trial = epath.Path(folder) / f".doctor-{secrets.token_hex(4)}"
    block = secrets.token_bytes(8 * MIB)
    began = time.monotonic()
    trial.write_bytes(block)
    written = max(1e-6, time.monotonic() - began)
    same = trial.read_bytes() == block
    trial.unlink()
    if not same:
        return [fail(name, f"{folder} gave back something else than was written", "use another bucket")]
    return [ok(name, f"{folder}: written and read back, {len(block) / written / MIB:.0f} MiB/s by one stream")]


def _guarded(name: str, folder: str, look: Callable[[], list[Finding]]) -> list[Finding]:
    try:
        return look()
    except ImportError as error:
        scheme = folder.partition("://")[0]
        package = {"gs": "gcsfs", "s3": "s3fs"}.get(scheme, f"the fsspec package for {scheme}://")
        return [fail(name, f"{folder} cannot be opened: {error}", f"pip install {package}")]
    # A bucket's client has error classes of its own for what a folder says with OSError.
    except Exception as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        text = f"{folder}: {str(reason).splitlines()[0]}"
        return [fail(name, text, "check that the path is right, that this user may write there, and the free space")]


def _missing_parents(folder: Path) -> list[Path]:
    """Returns the folders on the way to `folder`, and itself, that do not exist; the innermost first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]
