"""Files, and lines of files, that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from etils import epath


def replace_text(path: epath.PathLike, text: str) -> None:
    """Writes a file in UTF-8, so that a crash or a full disk leaves the old content."""
    replace_bytes(path, text.encode())


def replace_bytes(path: epath.PathLike, data: bytes) -> None:
    """Writes a file, so that a crash or a full disk leaves the old content."""
    with replacing(path) as partial:
        partial.write_bytes(data)


@contextlib.contextmanager
def replacing(path: epath.PathLike) -> Iterator[epath.Path]:
    """Yields the path of a file to write, which then takes the place of `path`; if writing fails, it is removed."""
    target = epath.Path(path)
    partial = target.parent / f".{target.name}.{os.getpid()}.partial"
    try:
        yield partial
        partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def whole_lines(path: Path) -> list[bytes]:
    """Returns the lines of a file that is appended to, none if there is no file.

    A last line without its end, from a process that died, is cut off the file: whoever calls holds the file's lock.
    """
    data = path.read_bytes() if path.exists() else b""
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        # In place: a kill while the file is written anew would lose every line.
        os.truncate(path, len(whole))
    # Not `splitlines`, which ends lines at a lone carriage return as well.
    return whole.split(b"\n")[:-1]
