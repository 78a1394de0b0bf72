"""Goodput: which share of a run's time made updates that were kept, over all of its sessions.

A session is one `iterpref train` in the run's folder. Each appends to `goodput.jsonl`: first a line that says when it
began and from which update, then slices of its tally. A slice says the last update in it, and a new one begins where a
checkpoint is saved: what a later session goes on from tells which slices were lost.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from iterpref_jax.atomic import replace_text
from iterpref_jax.errors import UserError
from iterpref_jax.train.tally import PARTS, Tally

FILE = "goodput.jsonl"
# A killed session is known up to its last slice.
SLICE_S = 60.0
# Time that was spent for nothing: updates that a later session made again, or what a session was killed in.
LOST = "lost"
# What a slice of lost updates loses. The rest of it (starting, compiling) is counted as what it was.
_REDONE = ("update", "input_wait", "evaluation", "checkpoint")


@dataclasses.dataclass
class SessionAccount:
    """One session as its lines tell it, in seconds: when it began (Unix time), how long it was, and every part.

    It went on from update `first` and came to update `last`; `hosts` and `devices` are their numbers.
    """

    began: float
    first: int
    last: int
    hosts: int
    devices: int
    device: str
    elapsed: float
    ended: bool
    parts: defaultdict[str, float]


@dataclasses.dataclass(frozen=True)
class Account:
    """All sessions of a run."""

    sessions: list[SessionAccount]

    @property
    def parts(self) -> dict[str, float]:
        """The seconds of every part, in the order of `PARTS`, the lost ones last."""
        return {part: sum(session.parts[part] for session in self.sessions) for part in (*PARTS, LOST)}

    @property
    def elapsed(self) -> float:
        """The seconds that sessions were running."""
        return sum(session.elapsed for session in self.sessions)

    @property
    def between(self) -> float:
        """The seconds between sessions, when nothing ran."""
        pairs = zip(self.sessions, self.sessions[1:], strict=False)
        return sum(max(0.0, after.began - before.began - before.elapsed) for before, after in pairs)

    def shares(self) -> dict[str, float]:
        """Returns the share of every part in the time of all sessions; that of updates is the goodput."""
        return {part: seconds / max(self.elapsed, 1e-9) for part, seconds in self.parts.items()}


def account(lines: list[dict[str, Any]]) -> Account:
    """Returns what the lines of a `goodput.jsonl` say."""
    sessions: list[SessionAccount] = []
    slices: list[list[dict[str, Any]]] = []
    for line in lines:
        if "began" in line:
            found = SessionAccount(**line, last=line["first"], elapsed=0.0, ended=False, parts=defaultdict(float))
            sessions.append(found)
            slices.append([])
        else:
            slices[-1].append(line)
    kept = float("inf")
    for session, told in zip(reversed(sessions), reversed(slices), strict=True):
        _add_up(session, told, kept)
        kept = min(kept, session.first)
    return Account(sessions)


def _add_up(session: SessionAccount, slices: list[dict[str, Any]], kept: float) -> None:
    """Adds up a session of which updates up to number `kept` were kept."""
    for each in slices:
        lost = each["last"] > kept
        for part, seconds in each["seconds"].items():
            session.parts[LOST if lost and part in _REDONE else part] += seconds
        session.last, session.elapsed, session.ended = each["last"], each["elapsed"], each["ended"]
    # What ran when the session was killed.
    session.parts[LOST] += max(0.0, session.elapsed - sum(session.parts.values()))


def read(path: Path | epath.Path) -> list[dict[str, Any]]:
    """Returns the lines of a `goodput.jsonl`, none where there is no file; one that a crash cut short is left out.

    Raises:
        UserError: a damaged line.
    """
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    found = []
    for number, line in enumerate(filter(lambda line: line.endswith("\n"), lines), start=1):
        try:
            found.append(json.loads(line))
        except ValueError as error:
            raise UserError(
                f"{path}, line {number} is damaged ({error}); move the file away: training does not need it, only the "
                "goodput of the sessions until now is lost"
            ) from error
    return found


@contextlib.contextmanager
def session(folder: Path | None, tally: Tally) -> Iterator[Ledger]:
    """Yields the ledger of a session that runs within; the end of it, if it is a good one, waits for a checkpoint."""
    with tally.hears_compilation():
        ledger = Ledger(folder, tally)
        try:
            yield ledger
        except BaseException:
            ledger.close("other")
            raise
        ledger.close("checkpoint")


class Ledger:
    """Writes the slices of one session's tally, every `SLICE_S` and where it is told to, until it is closed.

    Without a folder (all processes but one) nothing is written.
    """

    def __init__(self, folder: Path | None, tally: Tally):
        self._path, self._tally = folder and folder / FILE, tally
        self._lines: list[dict[str, Any]] = []
        self._written = dict.fromkeys(PARTS, 0.0)
        self._last = 0
        self._lock, self._closing = threading.Lock(), threading.Event()
        self._beat = threading.Thread(target=self._write_slices, name="goodput", daemon=True)
        self._failed: OSError | None = None

    def begin(self, first: int, hosts: int, devices: Sequence[Any]) -> None:
        """Begins a session that goes on from update number `first`."""
        self._last = first
        elapsed, _ = self._tally.seconds()
        about = {
            "began": time.time() - elapsed,
            "first": first,
            "hosts": hosts,
            "devices": len(devices),
            "device": devices[0].device_kind,
        }
        if self._path:
            self._lines = read(self._path)
            replace_text(self._path, "".join(json.dumps(line) + "\n" for line in self._lines))
        self._append(about)
        self._beat.start()

    def reached(self, update: int) -> None:
        """Says which update was the last; nothing is written."""
        self._last = update

    def cut(self) -> None:
        """Writes everything up to now: a checkpoint that is saved next keeps it.

        Raises:
            OSError: what went wrong here, or in the background.
        """
        if self._failed:
            raise self._failed
        self._write_slice(ended=False)

    def shares(self) -> dict[str, float]:
        """Returns the goodput until now, over all sessions: a share a part, and the seconds of it all."""
        with self._lock:
            elapsed, seconds = self._tally.seconds()
            slices = [self._slice(elapsed, seconds, ended=False)]
            whole = account([*self._lines, *slices])
        return whole.shares() | {"elapsed_s": whole.elapsed, "sessions": len(whole.sessions)}

    def close(self, part: str) -> None:
        """Ends the session; what it did last was `part`."""
        self._tally.ends(part)
        if self._beat.ident is None:
            return
        self._closing.set()
        self._beat.join()
        self._write_slice(ended=True)

    def _write_slices(self) -> None:
        while not self._closing.wait(SLICE_S):
            try:
                self._write_slice(ended=False)
            except OSError as error:
                self._failed = error
                return

    def _write_slice(self, *, ended: bool) -> None:
        with self._lock:
            elapsed, seconds = self._tally.seconds()
            self._append(self._slice(elapsed, seconds, ended=ended))
            self._written = seconds

    def _slice(self, elapsed: float, seconds: dict[str, float], *, ended: bool) -> dict[str, Any]:
        new = {part: seconds[part] - self._written[part] for part in PARTS if seconds[part] > self._written[part]}
        return {"last": self._last, "elapsed": elapsed, "ended": ended, "seconds": new}

    def _append(self, line: dict[str, Any]) -> None:
        self._lines.append(line)
        if self._path:
            with self._path.open("a") as file:
                file.write(json.dumps(line) + "\n")
