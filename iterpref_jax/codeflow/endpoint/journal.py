"""A journal of paid answers and finished steps: whatever `put` has returned from is there after any crash.

One SQLite file a run, written ahead (WAL) with a sync at every commit. Beside it lies `FILE.lock`, which the kernel
frees when its holder dies.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import socket
import sqlite3
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from iterpref_jax.codeflow.endpoint.asks import canonical
from iterpref_jax.errors import UserError
from iterpref_jax.locks import NO_LOCKS

# The kinds under which the client keeps answers, and what came of answers that broke off.
ANSWER, WASTE = "answer", "waste"
SCHEMA_VERSION = 1
# Tells a journal from other SQLite files: "ITPJ".
APPLICATION_ID = 0x4954504A
PAGE_ROWS = 512
_TABLES = """
CREATE TABLE entries (
  number INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL,
  crc INTEGER NOT NULL, UNIQUE (kind, key)
) STRICT
"""
_TOTALS = """
SELECT json_extract(value, '$.purpose'), count(*), total(json_extract(value, '$.prompt_tokens')),
  total(json_extract(value, '$.completion_tokens')), total(json_extract(value, '$.cost'))
FROM entries WHERE kind = ? GROUP BY 1 ORDER BY 1
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Totals:
    """What the answers of one purpose took; `cost` in USD."""

    calls: int
    prompt_tokens: int
    completion_tokens: int
    cost: float


class Journal:
    """Values by kind and key, in the order in which they came. Made by `open_journal`; usable from any thread.

    All methods raise UserError if the file is damaged or the disk fails.
    """

    def __init__(self, path: Path, writer: sqlite3.Connection, reader: sqlite3.Connection):
        # Two connections: who reads does not wait for the disk of who writes.
        self._path, self._writer, self._reader = path, writer, reader
        self._writing, self._reading = threading.Lock(), threading.Lock()

    def get(self, kind: str, key: str) -> dict[str, Any] | None:
        """Returns the value of `key`, or None."""
        found = self._rows("SELECT number, key, value, crc FROM entries WHERE kind = ? AND key = ?", kind, key)
        return self._value(*found[0]) if found else None

    def put(self, kind: str, key: str, value: dict[str, Any]) -> None:
        """Stores a value; it is on the disk when this returns. Again with the same value changes nothing.

        Raises ValueError for another value under a key that is there, and for values that are not JSON.
        """
        text = canonical(value)
        row = kind, key, text, zlib.crc32(text.encode())
        with self._writing, _named_faults(self._path):
            added = self._writer.execute(
                "INSERT INTO entries (kind, key, value, crc) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", row
            )
        if not added.rowcount and (old := self.get(kind, key)) != json.loads(text):
            raise ValueError(f"{self._path}: {kind} {key} has another value already: {canonical(old)[:200]}")

    def items(self, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields (key, value) in the order in which they were put; what is put meanwhile comes too."""
        last = 0
        query = "SELECT number, key, value, crc FROM entries WHERE kind = ? AND number > ? ORDER BY number LIMIT ?"
        while page := self._rows(query, kind, last, PAGE_ROWS):
            for row in page:
                yield row[1], self._value(*row)
            last = page[-1][0]

    def counts(self) -> dict[str, int]:
        """Returns the number of values of each kind."""
        return dict(self._rows("SELECT kind, count(*) FROM entries GROUP BY kind ORDER BY kind"))

    def totals(self, kind: str = ANSWER) -> dict[str, Totals]:
        """Returns what all answers so far took, by purpose."""
        return {
            purpose: Totals(calls=calls, prompt_tokens=int(prompt), completion_tokens=int(completion), cost=cost)
            for purpose, calls, prompt, completion, cost in self._rows(_TOTALS, kind)
        }

    def _rows(self, query: str, *values: Any) -> list[Any]:
        with self._reading, _named_faults(self._path):
            return self._reader.execute(query, values).fetchall()

    def _value(self, number: int, key: str, text: str, crc: int) -> dict[str, Any]:
        # SQLite checks the structure of its pages, not their content.
        if zlib.crc32(text.encode()) != crc:
            raise _damaged(self._path, f"entry {number} ({key}) does not match its checksum")
        return json.loads(text)


@contextlib.contextmanager
def open_journal(path: str | os.PathLike[str]) -> Iterator[Journal]:
    """Opens the journal at `path` for a `with` block, or begins one; this process is then its only writer.

    Raises:
        UserError: another process has it open, it is damaged or no journal, the folder cannot be written to.
    """
    path = Path(path)
    with contextlib.ExitStack() as stack:
        _hold(stack, path)
        writer = _connected(stack, path)
        with _named_faults(path):
            _prepare(writer, path)
        yield Journal(path, writer, _connected(stack, path))


def _connected(stack: contextlib.ExitStack, path: Path) -> sqlite3.Connection:
    with _named_faults(path):
        # Autocommit: every statement is a transaction of its own.
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    stack.callback(connection.close)
    return connection


def _hold(stack: contextlib.ExitStack, path: Path) -> None:
    """Locks `FILE.lock` until the stack unwinds and writes into it who holds it."""
    lock = path.with_name(path.name + ".lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = stack.enter_context(lock.open("a+"))
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(
            f"{path}: {_holder(lock)} has this journal open; wait for it, stop it, or work in another folder"
        ) from error
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{path}: {error.filename} cannot be made, a file stands there; name another folder") from error
    except OSError as error:
        hint = "put it on a local disk" if error.errno in NO_LOCKS else "choose a folder that this user may write to"
        raise UserError(f"{path}: cannot open the journal ({error.strerror}: {lock}); {hint}") from error
    _sign(file)


def _sign(file: IO[str]) -> None:
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S %Z')}")
    file.flush()


def _holder(lock: Path) -> str:
    return lock.read_text() or "another process"


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Makes the tables of a new file; of an old one, checks what it is and whether it is whole."""
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "fullfsync = ON"):
        connection.execute(f"PRAGMA {pragma}")
    (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
    if mode != "wal":
        raise UserError(f"{path}: this file system allows no write-ahead log; put the journal on a local disk")
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if not tables:
        # One transaction: killed in between, the file is still new.
        pragmas = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION}"
        connection.executescript(f"BEGIN; {_TABLES}; {pragmas}; COMMIT")
    _check_identity(connection, path)
    found = [row[0] for row in connection.execute("PRAGMA quick_check(1)")]
    if found != ["ok"]:
        raise _damaged(path, " ".join(found[0].split()))


def _check_identity(connection: sqlite3.Connection, path: Path) -> None:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID:
        raise UserError(f"{path}: this SQLite file is not a journal of ours; name another file")
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{path}: a journal of form {version}, this program reads form {SCHEMA_VERSION}; use the version that "
            "wrote it, or begin a new journal"
        )


@contextlib.contextmanager
def _named_faults(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        raise UserError(
            f"{path}: the journal cannot be used: {error}; free some space or mend the disk, then start the same "
            "command again: nothing that was stored is lost"
        ) from error
    except sqlite3.DatabaseError as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, why: str) -> UserError:
    return UserError(
        f"{path}: the journal is damaged ({why}); put back a copy, or save what can be read with `sqlite3 {path} "
        ".recover | sqlite3 NEW` and put NEW in its place, or delete it to begin again: its answers are then paid again"
    )
