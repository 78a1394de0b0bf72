"""A `gs://` that is a folder of this machine."""

from pathlib import Path


def stand_in(root: Path) -> str:
    """Returns Python that makes `gs://NAME/...` the folder NAME of `root`, in the process that runs it."""
    return f"""
import fsspec
from fsspec.implementations.local import LocalFileSystem

class Buckets(LocalFileSystem):
    protocol = ("gcs", "gs")

    @classmethod
    def _strip_protocol(cls, path):
        path = str(path)
        return {str(root)!r} + path[4:] if path.startswith("gs://") else LocalFileSystem._strip_protocol(path)

fsspec.register_implementation("gcs", Buckets, clobber=True)
"""
