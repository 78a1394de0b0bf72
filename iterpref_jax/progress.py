"""Progress of long work: a live `rich` bar on a terminal, plain timestamped lines everywhere else."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

import rich.console
import rich.progress

PLAIN_LINE_EVERY_S = 10.0

Advance = Callable[..., None]


# Of several processes one speaks; what is left to the others begins with this.
_other = ""


def speak_for(process: int) -> None:
    """Leaves everything but warnings to process 0."""
    global _other
    _other = f"process {process}: " if process else ""


def say(message: str) -> None:
    """Prints one line for a person: where a result lies, what was decided and why."""
    if not _other:
        warn(message)


def warn(message: str) -> None:
    """Prints one line that matters on any host."""
    message = _other + message
    rich.console.Console(file=sys.stderr, highlight=False, soft_wrap=True).print(message, markup=False)


@contextlib.contextmanager
def progress(title: str, total: int, unit: str, *, start: int = 0) -> Iterator[Advance]:
    """Yields `advance(n=1, note="")`, to be called when `n` more of `total` units are done.

    `start` units count as done before (resumed work): they move the bar but not the rate.
    """
    if _other:
        yield lambda n=1, note="": None
    elif sys.stderr.isatty():
        with _rich_bar(title, total, unit, start) as advance:
            yield advance
    else:
        with _plain_lines(title, total, unit, start) as advance:
            yield advance


@contextlib.contextmanager
def _rich_bar(title: str, total: int, unit: str, start: int) -> Iterator[Advance]:
    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("{task.fields[rate]}"),
        rich.progress.TimeRemainingColumn(),
        rich.progress.TextColumn("{task.fields[note]}"),
    )
    with rich.progress.Progress(*columns, console=rich.console.Console(file=sys.stderr)) as bar:
        task = bar.add_task(title, total=total, completed=start, rate="", note="")
        rate = _Rate(unit)

        def advance(n: int = 1, note: str = "") -> None:
            rate.add(n)
            bar.update(task, advance=n, rate=str(rate), note=note)

        yield advance


@contextlib.contextmanager
def _plain_lines(title: str, total: int, unit: str, start: int) -> Iterator[Advance]:
    began = last = time.monotonic()
    done, rate = 0, _Rate(unit)

    def line(note: str) -> None:
        left, a_second = total - start - done, rate.a_second()
        eta = f"{left / a_second:.0f} s left" if left > 0 and a_second else f"{time.monotonic() - began:.0f} s"
        text = f"{title}: {start + done}/{total} {unit}, {rate}, {eta}"
        print(f"{time.strftime('%H:%M:%S')} {text}{'  ' + note if note else ''}", file=sys.stderr, flush=True)

    def advance(n: int = 1, note: str = "") -> None:
        nonlocal done, last
        done += n
        rate.add(n)
        if time.monotonic() - last >= PLAIN_LINE_EVERY_S or start + done == total:
            last = time.monotonic()
            line(note)

    yield advance


class _Rate:
    """Units a second since the first advance: what comes before that compiles, or starts processes."""

    def __init__(self, unit: str):
        self._unit = unit
        self._since: float | None = None
        self._done = 0

    def add(self, n: int) -> None:
        if self._since is None:
            self._since = time.monotonic()
        else:
            self._done += n

    def a_second(self) -> float | None:
        elapsed = 0.0 if self._since is None else time.monotonic() - self._since
        return self._done / elapsed if self._done and elapsed > 0 else None

    def __str__(self) -> str:
        a_second = self.a_second()
        return f"{'-' if a_second is None else f'{a_second:.1f}'} {self._unit}/s"
