"""How programs fail, counted as the paper's Table 18 does: by the exception of each failing test's last line."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterable

from iterpref_jax.evaluate.samples import Verdict

COUNTING = (
    "Classes are the exception names of the last lines of the tracebacks of failing tests; a wrong output is an "
    "AssertionError. `tasks` counts once per task and class, `tests` every failing test (a script of assertions is one "
    "test, and ends at the first that fails). Messages are those of a sample's first failing test, quoted names are 'X'"
)
# Not an apostrophe within a word: can't.
_QUOTED = re.compile(r"(?<!\w)(?:'[^'\n]*'|\"[^\"\n]*\")(?!\w)")
MESSAGE_CHARACTERS = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class ErrorClass:
    """One row: how many tasks, samples and tests, and the commonest message with its number of samples."""

    name: str
    tasks: int
    samples: int
    tests: int
    message: str
    message_samples: int


def error_classes(verdicts: Iterable[Verdict]) -> list[ErrorClass]:
    """Returns the classes of errors, those of the most tasks first."""
    tasks: dict[str, set[str]] = collections.defaultdict(set)
    counts: dict[str, list[int]] = collections.defaultdict(list)
    messages: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for verdict in verdicts:
        failed = verdict.judged.failed
        if failed is None:
            continue
        for name, tests in failed.failing.items():
            tasks[name].add(verdict.task_id)
            counts[name].append(tests)
        messages[failed.error_type][normalised(failed.message)] += 1
    found = [_row(name, len(of_tasks), counts[name], messages[name]) for name, of_tasks in tasks.items()]
    return sorted(found, key=lambda each: (-each.tasks, each.name))


def _row(name: str, tasks: int, counts: list[int], messages: collections.Counter[str]) -> ErrorClass:
    message, number = min(messages.items(), key=lambda item: (-item[1], item[0]), default=("", 0))
    return ErrorClass(
        name=name, tasks=tasks, samples=len(counts), tests=sum(counts), message=message, message_samples=number
    )


def normalised(message: str) -> str:
    """Returns the first line of a message without what differs from program to program.

    >>> normalised("name 'foo' is not defined")
    "name 'X' is not defined"
    """
    lines = message.splitlines()
    return _QUOTED.sub("'X'", lines[0])[:MESSAGE_CHARACTERS] if lines else ""
