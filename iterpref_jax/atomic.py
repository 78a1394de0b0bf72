"""Small files that are there whole or not at all."""

from __future__ import annotations

import os

from etils import epath


def replace_text(path: epath.PathLike, text: str) -> None:
    """Writes a file in UTF-8, so that a crash or a full disk leaves the old content."""
    replace_bytes(path, text.encode())


def replace_bytes(path: epath.PathLike, data: bytes) -> None:
    """Writes a file beside `path` and moves it over `path`; if that fails, only what was there before is there."""
    target = epath.Path(path)
    partial = target.parent / f".{target.name}.{os.getpid()}.partial"
    try:
        partial.write_bytes(data)
        partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
