"""Form `problems`: tasks with many programs: CodeContests, LeetCodeDataset, samples of models."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping
from typing import Any

from iterpref_jax.codeflow import lcs, rows
from iterpref_jax.codeflow.imports import recorded
from iterpref_jax.codeflow.imports.candidates import Dropped, Item, State
from iterpref_jax.codeflow.imports.columns import Columns, Field, parsed
from iterpref_jax.codeflow.imports.programs import program_in, whole_program
from iterpref_jax.codeflow.imports.source import Source, find_task
from iterpref_jax.codeflow.imports.task_tests import TASK, TASK_FIELDS
from iterpref_jax.errors import UserError

# Which programs the source calls right or wrong; of samples it says nothing.
_RECORDED = {"right": True, "wrong": False, "samples": None}
FIELDS = (
    TASK,
    *TASK_FIELDS,
    Field(
        name="right", aliases=("solutions", "correct_solutions", "canonical_solution", "completion", "solution", "code")
    ),
    Field(name="wrong", aliases=("incorrect_solutions", "wrong_solutions", "failed_solutions")),
    Field(name="samples", aliases=("samples", "generations", "completions", "outputs", "responses", "response")),
    Field(name="declaration", aliases=("declaration", "prompt")),
    Field(name="source", aliases=("dataset",)),
)


def read(source: Source) -> Iterator[Item]:
    """Yields a pool of programs a row; those in other languages are left out."""
    columns = source.columns(FIELDS)
    for place, row in source.rows():
        task = find_task(row, columns, place, source)
        head = columns.text(row, "declaration", place)
        found = {name: _programs(columns.value(row, name, place), name, head, place) for name in _RECORDED}
        if not any(found.values()):
            has_some = any(columns.has(row, name) for name in _RECORDED)
            yield Dropped(name=task.name, reason="other_language" if has_some else "no_code")
            continue
        states = _nearest(found, source.settings.max_solutions)
        origin = columns.text(row, "source", place) or rows.stem(place.rsplit(",", 1)[0])
        if all(state.recorded for state in states):
            yield Dropped(name=task.name, reason="no_failing_version")
            continue
        yield task.candidate(task.name, states, "pool", origin, {}, source.setup)


def fits(row: rows.Row, columns: Columns) -> bool:
    """Whether a row looks like this form."""
    return any(columns.has(row, name) for name in _RECORDED) and any(
        columns.has(row, name) for name in ("tests", "cases", "public_tests", "private_tests", "generated_tests")
    )


def similarity(one: str, other: str) -> float:
    """Returns twice the common lines, in order, by all lines of both: 1 for equal programs, 0 for nothing in common."""
    a, b = one.splitlines(), other.splitlines()
    return 2 * len(lcs.matches(a, b)) / max(len(a) + len(b), 1)


def _nearest(found: Mapping[str, list[str]], limit: int) -> list[State]:
    """At most `limit` programs of each kind: the first right ones and samples, and the wrong ones most like them."""
    right, samples = found["right"][:limit], found["samples"][:limit]
    bags = [collections.Counter(code.splitlines()) for code in right or samples]
    # Lines without their order: thousands of programs are compared, and `similarity` takes a hundred times as long.
    wrong = sorted(found["wrong"], key=lambda code: -max((_common(code, bag) for bag in bags), default=0.0))[:limit]
    kinds = {"right": right, "wrong": wrong, "samples": samples}
    return [State(code=code, recorded=_RECORDED[kind]) for kind, codes in kinds.items() for code in codes]


def _common(code: str, bag: collections.Counter[str]) -> float:
    lines = collections.Counter(code.splitlines())
    return 2 * (lines & bag).total() / max(lines.total() + bag.total(), 1)


def _programs(value: Any, name: str, head: str, place: str) -> list[str]:
    """Returns the Python programs of one kind, without repeats, in their order."""
    if value is None:
        return []
    if name == "samples":
        texts = value if isinstance(value, list) else [value]
        codes = [program_in(str(text)) for text in texts]
        return list(dict.fromkeys(whole_program(head, code) for code in codes if code.strip()))
    codes = [code for language, code in _with_languages(value, place) if recorded.is_python_3(language)]
    return list(dict.fromkeys(whole_program(head, code) for code in codes))


def _with_languages(value: Any, place: str) -> Iterator[tuple[Any, str]]:
    is_code = isinstance(value, str) and not value.lstrip().startswith(("[", "{"))
    value = [value] if is_code else parsed(value, place)
    if isinstance(value, Mapping):
        codes = value.get("solution", value.get("code"))
        languages = value.get("language") or [None] * len(codes or ())
        if not isinstance(codes, list) or len(languages) != len(codes):
            raise UserError(f"{place}: wanted lists 'language' and 'solution' of one length, not {rows.shown(value)}")
        value = [{"solution": code, "language": name} for code, name in zip(codes, languages, strict=True)]
    for item in value if isinstance(value, list) else [value]:
        about = item if isinstance(item, Mapping) else {"solution": item}
        code = about.get("solution", about.get("code"))
        if not isinstance(code, str):
            raise UserError(
                f"{place}: a solution must be a string or an object with 'solution' (and 'language'), not "
                f"{rows.shown(item)}"
            )
        language = about.get("language")
        yield "python3" if language is None else language, code
