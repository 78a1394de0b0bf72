"""Form `submissions`: logs of who handed in which program when; a user's attempts at one task are a history."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator

from iterpref_jax.codeflow import rows
from iterpref_jax.codeflow.imports import recorded
from iterpref_jax.codeflow.imports.candidates import Dropped, Item, State
from iterpref_jax.codeflow.imports.columns import Columns, Field
from iterpref_jax.codeflow.imports.source import Found, Source, find_task
from iterpref_jax.codeflow.imports.task_tests import TASK, TASK_FIELDS
from iterpref_jax.errors import UserError

FIELDS = (
    TASK,
    *TASK_FIELDS,
    Field(name="user", aliases=("user", "user_id", "author", "student", "student_id", "username", "handle")),
    Field(
        name="time",
        aliases=("time", "timestamp", "date", "submitted_at", "submission_time", "created_at", "creation_time"),
    ),
    Field(name="code", aliases=("code", "source_code", "submission", "program", "solution", "answer")),
    Field(name="status", aliases=("status", "verdict", "result", "outcome", "passed", "score_status")),
    Field(name="language", aliases=("original_language", "language", "lang")),
    Field(name="source", aliases=("source", "dataset")),
)


@dataclasses.dataclass(kw_only=True)
class _History:
    """What one user handed in for one task; `attempts` are (time, state)."""

    task: Found
    source: str
    attempts: list[tuple[float, State]] = dataclasses.field(default_factory=list)


def read(source: Source) -> Iterator[Item]:
    """Yields one history for each user and task, in the order of their first rows; equal times keep the file's order.

    Raises UserError where a time is neither a number nor an ISO date, or some are numbers and some dates.
    """
    histories: dict[tuple[str, str], _History] = {}
    others: collections.Counter[str] = collections.Counter()
    columns, tasks, is_date = source.columns(FIELDS), {}, None
    for place, row in source.rows():
        name = columns.needed(row, "task", place)
        language = columns.value(row, "language", place)
        if language is not None and not recorded.is_python_3(language):
            others[name] += 1
            continue
        is_date, time = _time(row, columns, place, is_date)
        key = (name, columns.needed(row, "user", place))
        if key not in histories:
            if name not in tasks:
                tasks[name] = find_task(row, columns, place, source)
            origin = columns.text(row, "source", place) or rows.stem(place.rsplit(",", 1)[0])
            histories[key] = _History(task=tasks[name], source=origin)
        state = State(
            code=columns.text(row, "code", place), recorded=recorded.passes(columns.value(row, "status", place))
        )
        histories[key].attempts.append((time, state))
    yield from (_item(key, history, source.setup) for key, history in histories.items())
    yield from (Dropped(name=name, reason="other_language") for name in others.elements())


def fits(row: rows.Row, columns: Columns) -> bool:
    """Whether a row looks like this form."""
    return all(columns.has(row, name) for name in ("user", "task", "time", "code"))


def _time(row: rows.Row, columns: Columns, place: str, was_date: bool | None) -> tuple[bool, float]:
    text = columns.needed(row, "time", place)
    try:
        is_date, time = recorded.seconds(text)
    except ValueError as error:
        raise UserError(f"{place}: the field 'time' must be a number or an ISO date, not {text!r}") from error
    if was_date is not None and was_date != is_date:
        raise UserError(
            f"{place}: {text!r}: times before were {'dates' if was_date else 'numbers'}; use one of the two"
        )
    return is_date, time


def _item(key: tuple[str, str], history: _History, setup: str) -> Item:
    states = [state for _, state in sorted(history.attempts, key=lambda attempt: attempt[0])]
    task, user = key
    return history.task.candidate(f"{task}/{user}", states, "until_pass", history.source, {"user": user}, setup)
