"""Form `fixes`: rows with a wrong program and its repair, such as HumanEvalFix, QuixBugs and DebugBench."""

from __future__ import annotations

from collections.abc import Iterator

from iterpref_jax.codeflow import rows
from iterpref_jax.codeflow.imports import recorded
from iterpref_jax.codeflow.imports.candidates import Dropped, Item, State
from iterpref_jax.codeflow.imports.columns import Columns, Field
from iterpref_jax.codeflow.imports.programs import whole_program
from iterpref_jax.codeflow.imports.source import Source, find_task
from iterpref_jax.codeflow.imports.task_tests import TASK, TASK_FIELDS

FIELDS = (
    TASK,
    *TASK_FIELDS,
    Field(name="buggy", aliases=("buggy_solution", "buggy_code", "buggy_program", "buggy", "wrong_code", "before")),
    Field(
        name="fixed",
        aliases=(
            "canonical_solution",
            "fixed_code",
            "fixed_program",
            "correct_program",
            "correct_code",
            "fixed",
            "solution",
            "oracle_code",
            "after",
        ),
    ),
    Field(name="declaration", aliases=("declaration", "prompt")),
    Field(name="language", aliases=("language", "lang")),
    Field(name="source", aliases=("source", "dataset")),
)


def read(source: Source) -> Iterator[Item]:
    """Yields a history of two versions a row: the wrong one and its repair."""
    columns = source.columns(FIELDS)
    for place, row in source.rows():
        task = find_task(row, columns, place, source)
        language = columns.value(row, "language", place)
        if language is not None and not recorded.is_python_3(language):
            yield Dropped(name=task.name, reason="other_language")
            continue
        head = columns.text(row, "declaration", place)
        codes = [whole_program(head, columns.needed(row, field, place)) for field in ("buggy", "fixed")]
        states = [State(code=code, recorded=passed) for code, passed in zip(codes, (False, True), strict=True)]
        origin = columns.text(row, "source", place) or rows.stem(place.rsplit(",", 1)[0])
        yield task.candidate(task.name, states, "whole", origin, {}, source.setup)


def fits(row: rows.Row, columns: Columns) -> bool:
    """Whether a row looks like this form."""
    return columns.has(row, "buggy") and columns.has(row, "fixed")
