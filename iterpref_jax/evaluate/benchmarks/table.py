"""Benchmark by name, and which of its tasks are wanted."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable

from iterpref_jax.codeflow import rows
from iterpref_jax.errors import UserError, did_you_mean
from iterpref_jax.evaluate.benchmarks import bigcodebench, evalplus, human_eval, leetcode, livecodebench, mbpp, stored
from iterpref_jax.evaluate.benchmarks.file import Choice, Source, find
from iterpref_jax.evaluate.tasks import Benchmark
from iterpref_jax.progress import say

# Name -> reader of its file.
BENCHMARKS: dict[str, Callable[[Source, Choice], Benchmark]] = {
    "humaneval": human_eval.read,
    "humaneval+": evalplus.read_human_eval,
    "mbpp": mbpp.read,
    "mbpp-all": mbpp.read_all,
    "mbpp+": evalplus.read_mbpp,
    "bigcodebench": bigcodebench.read,
    "bigcodebench-hard": bigcodebench.read,
    "livecodebench": livecodebench.read,
    "leetcode": leetcode.read,
    "trajectories": stored.read,
}
# Nothing is published under these names.
OWN = ("trajectories",)
# Found without a file: installed packages.
PACKAGED = {"humaneval": human_eval.packaged}


def load(name: str, data: rows.PathLike, choice: Choice) -> Benchmark:
    """Returns the chosen tasks of a benchmark, and says its name, version, rows and checksum.

    Raises:
        UserError: an unknown name, no file, a row that is not of this benchmark, or no task left.
    """
    if name not in BENCHMARKS:
        raise UserError(
            f"--benchmark {name!r} is not known{did_you_mean(name, BENCHMARKS)}; known: {', '.join(BENCHMARKS)}"
        )
    if not data and name not in PACKAGED:
        raise UserError(f"--benchmark={name} needs its file: give --data=FILE (nothing is fetched from a hub)")
    source = find(name, data or PACKAGED[name]())
    benchmark = BENCHMARKS[name](source, choice)
    _check_dates(name, choice)
    if choice.limit:
        benchmark = dataclasses.replace(benchmark, tasks=benchmark.tasks[: choice.limit])
    if not benchmark.tasks:
        raise UserError(f"{source.path}: no task is left of {name} (since {choice.since!r}, until {choice.until!r})")
    known = source.version or ("a file of one's own" if name in OWN else "a version that is not known here")
    say(f"{name}: {known}, {len(benchmark.tasks)} tasks, sha256 {source.sha256[:12]}: {source.path}")
    if not source.version and name not in OWN:
        say(f"warning: {source.path}: this checksum is not that of a published file; scores may not be comparable")
    return benchmark


def _check_dates(name: str, choice: Choice) -> None:
    for field in ("since", "until"):
        text = getattr(choice, field)
        if text and name != "livecodebench":
            raise UserError(f"evaluate.{field} = {text!r}: tasks of {name} have no date; leave it empty")
        if text and not _is_date(text):
            raise UserError(f"evaluate.{field}: wanted a date such as 2024-08-01, got {text!r}")


def _is_date(text: str) -> bool:
    # Dates are compared as texts, so 20240801 and 2024-W31-4, which are dates as well, would not do.
    try:
        return datetime.date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False
