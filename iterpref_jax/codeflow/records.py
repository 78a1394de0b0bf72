"""Debugging histories and preference pairs: the records of CodeFlow and the files that hold them.

`trajectories.jsonl` (one object a line): `task_id`, `instruction`, `test_code`, `versions` and, if there is something
to say, `source`, `setup_code`, `meta`. A version: `code`, `passed` and, if it failed, `error_type`, `stderr_tail`. The
verdict of a version is that of `setup_code + code + test_code` run as one script, or as `meta.style` says (a style of
the sandbox's; "stdin": `test_code` is the JSON text of a list of `{"input", "output"}`). Rows with the same `meta.task`
belong to one task; without it, those with the same instruction do.

`pairs.jsonl`: the fields of `Pair`. `read_pairs` also takes preference data of other projects, in any of TRL's forms
(`codeflow.preferences`), as JSON Lines, JSON or Parquet.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any, Literal

from iterpref_jax.codeflow import preferences, rows
from iterpref_jax.errors import UserError, did_you_mean

Message = preferences.Message
Form = Literal["code", "text"]
FORMS: tuple[Form, ...] = ("code", "text")

_VERSION_FIELDS = ("code", "passed", "error_type", "stderr_tail")
_TRAJECTORY_FIELDS = ("task_id", "source", "instruction", "test_code", "setup_code", "versions", "meta")
_PAIR_FIELDS = ("pair_id", "task", "prompt", "chosen", "rejected", "form", "meta")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Version:
    """One state of a program on its way to passing; `error_type` is None where it passed or nothing is known."""

    code: str
    passed: bool
    error_type: str | None
    stderr_tail: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trajectory:
    """The history of one task's solution: `versions` in the order of time, the last one final."""

    task_id: str
    source: str
    instruction: str
    test_code: str
    setup_code: str
    versions: tuple[Version, ...]
    meta: dict[str, Any]

    @property
    def task(self) -> str:
        """What is split and capped together: several histories of one task share `meta["task"]`, or the instruction."""
        return self.meta.get("task") or _prompt_task(self.instruction)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """A better and a worse answer to one prompt.

    `form` says what the answers are: "code", bare programs (a fence is added before training if so configured); "text",
    completions as the model writes them, prose and fences included.
    """

    pair_id: str
    task: str
    prompt: str | tuple[Message, ...]
    chosen: str
    rejected: str
    form: Form
    meta: dict[str, Any]


def read_trajectories(path: rows.PathLike) -> Iterator[Trajectory]:
    """Yields the trajectories of a file in its order; raises UserError at the first row that is not one."""
    seen: dict[str, str] = {}
    for place, row in rows.read_rows(path):
        trajectory = _trajectory(row, place)
        _refuse_repeated("task_id", trajectory.task_id, place, seen)
        yield trajectory


def write_trajectories(path: rows.PathLike, trajectories: Iterable[Trajectory]) -> int:
    """Writes `trajectories` as JSON Lines, complete or not at all, and returns how many."""
    return rows.write_rows(path, map(dataclasses.asdict, trajectories))


def read_pairs(path: rows.PathLike) -> Iterator[Pair]:
    """Yields the pairs of a file in its order: our own `pairs.jsonl`, or preference data in one of TRL's forms.

    Where a row lacks them, `pair_id` is "FILE STEM/ROW" (from 0), `task` is `task_id` or a hash of the prompt (so that
    equal prompts are one task), `form` is "text". Columns of other names go to `meta`.

    Raises:
      UserError: at the first row that is not a pair.
    """
    seen: dict[str, str] = {}
    stem = rows.stem(path)
    for number, (place, row) in enumerate(rows.read_rows(path)):
        pair = _pair(row, place, default_id=f"{stem}/{number}")
        _refuse_repeated("pair_id", pair.pair_id, place, seen)
        yield pair


def write_pairs(path: rows.PathLike, pairs: Iterable[Pair]) -> int:
    """Writes `pairs` as JSON Lines, complete or not at all, and returns how many."""
    return rows.write_rows(path, map(dataclasses.asdict, pairs))


def file_kind(path: rows.PathLike) -> Literal["trajectories", "pairs"]:
    """Returns what a file holds, by the fields of its first row; raises UserError if it is neither."""
    place, row = next(rows.read_rows(path))
    if "versions" in row:
        return "trajectories"
    if "chosen" in row and "rejected" in row:
        return "pairs"
    known = ("versions", "chosen", "rejected")
    hints = "".join(did_you_mean(name, known) for name in row)
    raise UserError(
        f"{place}: neither a trajectory (field 'versions') nor a pair (fields 'chosen' and 'rejected'); "
        f"the fields are {', '.join(row) or 'none'}{hints}"
    )


def _trajectory(row: rows.Row, place: str) -> Trajectory:
    rows.refuse_unknown(row, _TRAJECTORY_FIELDS, place, "put extra information under 'meta'")
    row = {"source": "", "setup_code": "", "meta": {}, **row}
    texts = {name: rows.take(row, name, str, place) for name in _TRAJECTORY_FIELDS[:5]}
    meta = rows.take(row, "meta", dict, place)
    if not texts["task_id"]:
        raise UserError(f"{place}: the field 'task_id' is empty; give every trajectory its own name")
    if "task" in meta and not rows.take(meta, "task", str, f"{place}: meta"):
        raise UserError(f"{place}: the field 'task' of 'meta' is empty; name the task or leave it out")
    versions = rows.take(row, "versions", list, place)
    if not versions:
        raise UserError(f"{place}: the field 'versions' is empty; a trajectory holds at least its final version")
    return Trajectory(**texts, meta=meta, versions=tuple(_version(v, place, i) for i, v in enumerate(versions)))


def _version(value: Any, place: str, index: int) -> Version:
    place = f"{place}: versions[{index}]"
    if not isinstance(value, dict):
        raise UserError(f"{place} must be an object with 'code' and 'passed', not {rows.shown(value)}")
    rows.refuse_unknown(value, _VERSION_FIELDS, place, "put extra information under the trajectory's 'meta'")
    row = {"error_type": None, "stderr_tail": "", **value}
    return Version(
        code=rows.take(row, "code", str, place),
        passed=rows.take(row, "passed", bool, place),
        error_type=None if row["error_type"] is None else rows.take(row, "error_type", str, place),
        stderr_tail=rows.take(row, "stderr_tail", str, place),
    )


def _pair(row: rows.Row, place: str, default_id: str) -> Pair:
    prompt, chosen, rejected = preferences.split_preference(row, place)
    given = {name: value for name, value in row.items() if value is not None}
    form = rows.take({"form": "text", **given}, "form", str, place)
    if form not in FORMS:
        raise UserError(f"{place}: the field 'form' must be one of {', '.join(FORMS)}, not {form!r}")
    return Pair(
        pair_id=_name(given, "pair_id", place) or default_id,
        task=_name(given, "task", place) or _name(given, "task_id", place) or _prompt_task(prompt),
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        form=form,
        meta=_meta(given, place),
    )


def _name(row: rows.Row, field: str, place: str) -> str | None:
    value = row.get(field)
    # Data sets number their tasks (MBPP, BigCodeBench); a bool is an int in Python but no name.
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return None if value is None else rows.take(row, field, str, place)


def _prompt_task(prompt: str | tuple[Message, ...]) -> str:
    canonical = json.dumps(prompt, ensure_ascii=False, sort_keys=True)
    return "prompt-" + hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _meta(row: rows.Row, place: str) -> dict[str, Any]:
    meta = rows.take({"meta": {}, **row}, "meta", dict, place)
    others = {name: value for name, value in row.items() if name not in _PAIR_FIELDS}
    for name in others:
        if name in meta:
            raise UserError(f"{place}: {name!r} is both a field and a key of 'meta'; rename one of them")
    return meta | others


def _refuse_repeated(field: str, name: str, place: str, seen: dict[str, str]) -> None:
    if name in seen:
        raise UserError(f"{place}: the {field} {name!r} also stands at {seen[name]}; make them unique in the file")
    seen[name] = place
