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


def say(message: str) -> None:
    """Prints one line for a person: where a result lies, what was decided and why."""
    rich.console.Console(file=sys.stderr, highlight=False, soft_wrap=True).print(message, markup=False)


@contextlib.contextmanager
def progress(title: str, total: int, unit: str, *, start: int = 0) -> Iterator[Advance]:
    """Yields `advance(n=1, note="")`, to be called when `n` more of `total` units are done.

    `start` units count as done before (resumed work): they move the bar but not the rate.
    """
    if sys.stderr.isatty():
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
        began, done = time.monotonic(), 0

        def advance(n: int = 1, note: str = "") -> None:
            nonlocal done
            done += n
            bar.update(task, advance=n, rate=_rate(done, time.monotonic() - began, unit), note=note)

        yield advance


@contextlib.contextmanager
def _plain_lines(title: str, total: int, unit: str, start: int) -> Iterator[Advance]:
    began = last = time.monotonic()
    done = 0

    def line(note: str) -> None:
        elapsed = time.monotonic() - began
        left = total - start - done
        eta = f"{left * elapsed / done:.0f} s left" if done and left > 0 else f"{elapsed:.0f} s"
        text = f"{title}: {start + done}/{total} {unit}, {_rate(done, elapsed, unit)}, {eta}"
        print(f"{time.strftime('%H:%M:%S')} {text}{'  ' + note if note else ''}", file=sys.stderr, flush=True)

    def advance(n: int = 1, note: str = "") -> None:
        nonlocal done, last
        done += n
        if time.monotonic() - last >= PLAIN_LINE_EVERY_S or start + done == total:
            last = time.monotonic()
            line(note)

    yield advance


def _rate(done: int, elapsed: float, unit: str) -> str:
    return f"{done / elapsed:.1f} {unit}/s" if elapsed > 0 and done else f"- {unit}/s"
