"""Puts the folders of shards together into one, as if one run had made it; needs no engine."""

from __future__ import annotations

import collections
import heapq
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from iterpref_jax.codeflow import filters, records, rows
from iterpref_jax.codeflow.generate import report
from iterpref_jax.codeflow.generate.outcome import Outcome
from iterpref_jax.codeflow.generate.run import OUTCOMES, PAIRS, TRAJECTORIES
from iterpref_jax.errors import UserError

# What the shards of one generation agree on, and what it means.
_SHARED = {
    "settings": "settings, prompts, or model",
    "pairing": "settings of pairs, filters, or judge",
    "of_tasks": "number of tasks",
}
_NEEDED = {"shard", "drop_duplicates", *_SHARED}


def merge(folders: Sequence[Path], out: Path) -> report.Report:
    """Writes outcomes, trajectories, pairs and the report of all shards into `out`, and returns the report.

    Tasks come in the order of their numbers; of equal pairs the first is kept, or all, as the shards' filters say.
    Raises UserError for folders that are not all shards of one generation, each once, and for an `out` that is one of
    them.
    """
    if out.resolve() in [folder.resolve() for folder in folders]:
        raise UserError(f"--out: {out} is the folder of a shard, which would be lost; name another")
    reports = [_report(folder) for folder in folders]
    _check(folders, reports)
    out.mkdir(parents=True, exist_ok=True)
    rows.write_rows(out / OUTCOMES, _in_order(folders))
    order: dict[str, int] = {}
    records.write_trajectories(out / TRAJECTORIES, _trajectories(folders, order))
    pairs = [pair for folder in folders for pair in _pairs(folder / PAIRS)]
    pairs.sort(key=lambda pair: order[pair.meta["trajectory"]])
    kept = pairs
    if reports[0]["about"]["drop_duplicates"]:
        first: dict[bytes, records.Pair] = {}
        for pair in pairs:
            first.setdefault(filters.pair_key(pair), pair)
        kept = list(first.values())
    records.write_pairs(out / PAIRS, kept)
    dropped = collections.Counter({"duplicate": len(pairs) - len(kept)} if len(kept) < len(pairs) else {})
    for found in reports:
        dropped.update(found["dropped_pairs"])
    bills = {kind: dict(sorted(_add([found[kind] for found in reports]).items())) for kind in ("spent", "wasted")}
    whole = report.make(_outcomes(folders), kept, dropped, bills, _about(reports))
    report.write(out, whole)
    return whole


def _report(folder: Path) -> report.Report:
    path = folder / report.REPORT
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no report; has `iterpref generate --out={folder}` ended?") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from error
    if not isinstance(found, dict) or _NEEDED - set(found.get("about", ())):
        raise UserError(f"{path}: no report of this version; start `iterpref generate --out={folder}` again")
    return found


def _check(folders: Sequence[Path], reports: Sequence[report.Report]) -> None:
    first = reports[0]["about"]
    seen: dict[int, Path] = {}
    for folder, about in zip(folders, (found["about"] for found in reports), strict=True):
        number, count = about["shard"]
        differing = [meaning for name, meaning in _SHARED.items() if about[name] != first[name]]
        differing += ["number of shards"] if count != first["shard"][1] else []
        if differing:
            raise UserError(f"{folder} and {folders[0]} are of different generations: {'; '.join(differing)} differ")
        if number in seen:
            raise UserError(f"{folder} and {seen[number]} are the same shard, {number}/{count}")
        seen[number] = folder
    missing = [f"{number}/{first['shard'][1]}" for number in range(first["shard"][1]) if number not in seen]
    if missing:
        raise UserError(f"shards are missing: {', '.join(missing)}; name all folders")


def _about(reports: Sequence[report.Report]) -> dict[str, Any]:
    tasks = sum(found["about"]["tasks"] for found in reports)
    return reports[0]["about"] | {"tasks": tasks, "shard": [0, 1]}


def _trajectories(folders: Sequence[Path], order: dict[str, int]) -> Iterator[records.Trajectory]:
    """Yields the trajectories and notes their places in `order`."""
    for outcome in _outcomes(folders):
        trajectory = outcome.trajectory()
        if trajectory is not None:
            order[trajectory.task_id] = len(order)
            yield trajectory


def _outcomes(folders: Sequence[Path]) -> Iterator[Outcome]:
    for row in _in_order(folders):
        yield Outcome.from_json(_without_number(row))


def _in_order(folders: Sequence[Path]) -> Iterator[rows.Row]:
    files = [_rows(folder / OUTCOMES) for folder in folders]
    return heapq.merge(*files, key=lambda row: row["number"])


def _rows(path: Path) -> Iterator[rows.Row]:
    # A shard may have no task at all, and its file no row.
    if path.stat().st_size:
        for _, row in rows.read_rows(path):
            yield row


def _pairs(path: Path) -> Iterator[records.Pair]:
    if path.stat().st_size:
        yield from records.read_pairs(path)


def _without_number(row: rows.Row) -> rows.Row:
    return {name: value for name, value in row.items() if name != "number"}


def _add(values: Sequence[Any]) -> Any:
    """Adds up numbers, and objects of them name by name."""
    if isinstance(values[0], dict):
        names = dict.fromkeys(name for value in values for name in value)
        return {name: _add([value[name] for value in values if name in value]) for name in names}
    return sum(values)
