"""Verdicts on disk, as they come: what was run once is not run again, after a kill as well."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator

from iterpref_jax.codeflow.sandbox import Program, SandboxSettings, Verdict
from iterpref_jax.errors import UserError


class StoredVerdicts:
    """One file of verdicts by key; made by `open_verdicts`, used by one thread."""

    def __init__(self, connection: sqlite3.Connection):
        self._connection = connection

    def get(self, key: str) -> Verdict | None:
        found = self._connection.execute("SELECT verdict FROM verdicts WHERE key = ?", (key,)).fetchone()
        if found is None:
            return None
        fields = json.loads(found[0])
        return Verdict(**fields | {"gaps": tuple(fields["gaps"])})

    def put(self, key: str, verdict: Verdict) -> None:
        """Stores a verdict; it outlives the process from when this returns."""
        text = json.dumps(dataclasses.asdict(verdict), sort_keys=True)
        self._connection.execute("INSERT OR REPLACE INTO verdicts VALUES (?, ?)", (key, text))

    def __len__(self) -> int:
        return self._connection.execute("SELECT count(*) FROM verdicts").fetchone()[0]


def verdict_key(program: Program, settings: SandboxSettings, *, hash_seed: int, check_vacuous: bool) -> str:
    """Returns the name of a run: a hash of everything that its verdict depends on, and not of the number of workers."""
    limits = {name: value for name, value in dataclasses.asdict(settings).items() if name != "workers"}
    content = [dataclasses.asdict(program), limits, hash_seed, check_vacuous]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def open_verdicts(path: str | os.PathLike[str]) -> Iterator[StoredVerdicts]:
    """Opens the file, or makes it; raises UserError where another process has it open or it is damaged."""
    # Without isolation every statement is a transaction of its own; a busy file is refused at once.
    connection = sqlite3.connect(path, timeout=0, isolation_level=None)
    try:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = WAL")
        # Safe against a kill; the last verdicts before a power failure may be run again.
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("CREATE TABLE IF NOT EXISTS verdicts (key TEXT PRIMARY KEY, verdict TEXT) WITHOUT ROWID")
        yield StoredVerdicts(connection)
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
            raise UserError(f"{path}: {error}; check the folder and its permissions") from error
        raise UserError(
            f"{path}: another process is importing into this folder; wait for it or name another"
        ) from error
    except sqlite3.DatabaseError as error:
        raise UserError(
            f"{path}: the verdicts cannot be read ({error}); remove this file: they are found anew"
        ) from error
    finally:
        connection.close()
