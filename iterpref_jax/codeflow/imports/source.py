"""What a reader gets: files, what the user said about them, and the tasks of a file of tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from iterpref_jax.codeflow import rows
from iterpref_jax.codeflow.imports.candidates import Candidate, Dropped, Item, Order, State
from iterpref_jax.codeflow.imports.columns import Columns, Field
from iterpref_jax.codeflow.imports.task_tests import Task, TaskTests, find_tests
from iterpref_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportSettings:
    """`max_solutions` right ones, and as many wrong ones, of one pool are run; `max_cases` cases of inputs and outputs
    judge a program."""

    max_solutions: int
    max_cases: int

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                raise UserError(f"imports.{field.name}: wanted at least 1, got {getattr(self, field.name)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """`paths` are read one after the other; `setup` runs before every program; `tasks` is the file of tests."""

    paths: Sequence[str]
    renamed: Mapping[str, str]
    tasks: Mapping[str, Task]
    setup: str
    settings: ImportSettings

    def rows(self) -> Iterator[tuple[str, rows.Row]]:
        """Yields `(place, row)` of all files; benchmarks hold NaN, so that is no error."""
        for path in self.paths:
            yield from rows.read_rows(path, allow_nan=True)

    def columns(self, fields: Sequence[Field]) -> Columns:
        return Columns(fields, self.renamed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """A task as a row and the file of tests describe it."""

    name: str
    instruction: str
    tests: TaskTests

    def candidate(
        self, name: str, states: Sequence[State], order: Order, source: str, meta: Mapping[str, Any], setup: str
    ) -> Item:
        """Returns the candidate, or why there is none."""
        if reason := self._lacks(states):
            return Dropped(name=name, reason=reason)
        return Candidate(
            name=name,
            task=self.name,
            source=source,
            instruction=self.instruction,
            setup=setup + self.tests.setup,
            tests=self.tests.code,
            style=self.tests.style,
            states=tuple(states),
            order=order,
            meta=dict(meta),
        )

    def _lacks(self, states: Sequence[State]) -> str:
        if not self.tests.code:
            return "no_tests"
        if not self.instruction:
            return "no_instruction"
        return "one_version" if len({state.code for state in states}) < 2 else ""


def find_task(row: rows.Row, columns: Columns, place: str, source: Source, default: str = "") -> Found:
    """Returns the task of a row; what the row lacks is taken from the file of tests."""
    name = columns.text(row, "task", place) or default or columns.needed(row, "task", place)
    tests = find_tests(row, columns, place, source.settings.max_cases)
    instruction = columns.text(row, "instruction", place)
    known = source.tasks.get(name)
    if known is not None:
        tests = tests if tests.code else known.tests
        instruction = instruction or known.instruction
    return Found(name=name, instruction=instruction, tests=tests)
