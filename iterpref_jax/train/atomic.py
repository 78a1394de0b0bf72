"""Small files that are there whole or not at all."""

from __future__ import annotations

from etils import epath


def replace_text(path: epath.PathLike, text: str) -> None:
    """Writes a file beside `path` and moves it over `path`, so that a crash leaves the old content."""
    path = epath.Path(path)
    partial = path.parent / f"{path.name}.partial"
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
