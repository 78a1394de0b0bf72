"""Form `trajectories`: our own records, whose verdicts are not believed but found anew."""

from __future__ import annotations

from collections.abc import Iterator

from iterpref_jax.codeflow import records, rows, stdin_cases
from iterpref_jax.codeflow.imports.candidates import Item, State
from iterpref_jax.codeflow.imports.columns import Columns, Field
from iterpref_jax.codeflow.imports.source import Found, Source
from iterpref_jax.codeflow.imports.task_tests import TaskTests
from iterpref_jax.errors import UserError

# Strict: `codeflow.records` reads these, so they have no other names.
FIELDS = (Field(name="versions", aliases=("versions",)),)
# What the judging writes itself.
_FOUND = ("task", "tier", "style")


def read(source: Source) -> Iterator[Item]:
    """Yields every trajectory as a whole history whose last version is final."""
    for path in source.paths:
        for trajectory in records.read_trajectories(path):
            task = Found(name=trajectory.task, instruction=trajectory.instruction, tests=tests_of(trajectory, path))
            states = [State(code=version.code, recorded=version.passed) for version in trajectory.versions]
            meta = {name: value for name, value in trajectory.meta.items() if name not in _FOUND}
            yield task.candidate(trajectory.task_id, states, "whole", trajectory.source, meta, source.setup)


def fits(row: rows.Row, columns: Columns) -> bool:
    """Whether a row looks like this form."""
    return columns.has(row, "versions") and "instruction" in row and "test_code" in row


def tests_of(trajectory: records.Trajectory, path: str) -> TaskTests:
    """Returns its tests, of any style; raises UserError where those of the style "stdin" are no cases."""
    style = str(trajectory.meta.get("style", "script"))
    if style == stdin_cases.STYLE:
        try:
            stdin_cases.parse(trajectory.test_code)
        except ValueError as error:
            raise UserError(f"{path}: {trajectory.task_id}: 'test_code' of the style 'stdin': {error}") from error
    return TaskTests(code=trajectory.test_code, setup=trajectory.setup_code, style=style)
