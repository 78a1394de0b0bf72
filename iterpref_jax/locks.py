"""Locks of the kernel's, which frees those of a process that died."""

from __future__ import annotations

import contextlib
import errno
import fcntl
from collections.abc import Iterator
from pathlib import Path

from iterpref_jax.errors import UserError
from iterpref_jax.progress import say

# What file systems say that have none.
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


@contextlib.contextmanager
def held(path: Path, taken: str) -> Iterator[None]:
    """Holds the lock of a file, which is made; goes on, with a warning, where the file system has no locks.

    Raises:
        UserError: another process holds it, in the words of `taken`.
    """
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(taken) from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            say(f"{path}: this file system has no locks: let no other process work in this folder")
        yield
