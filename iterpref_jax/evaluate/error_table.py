"""How programs fail, counted as the paper's Table 18 does: by the exception of each failing test's last line."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterable

from iterpref_jax.evaluate.samples import Verdict

COUNTING = (
    "Counted once per task and class: the exception name of the last line of the traceback of a sample's first "
    "failing test; quoted names in messages are 'X'"
)
_QUOTED = re.compile(r"'[^'\n]*'|\"[^\"\n]*\"")
MESSAGE_CHARACTERS = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class ErrorClass:
    """One row: how many tasks and samples, and the commonest message with its number of samples."""

    name: str
    tasks: int
    samples: int
    message: str
    message_samples: int


def error_classes(verdicts: Iterable[Verdict]) -> list[ErrorClass]:
    """Returns the classes of errors, the commonest first."""
    tasks: dict[str, set[str]] = collections.defaultdict(set)
    messages: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for verdict in verdicts:
        failed = verdict.judged.failed
        if failed is not None:
            name = failed.error_type or failed.status
            tasks[name].add(verdict.task_id)
            messages[name][normalised(failed.message)] += 1
    found = []
    for name, of_tasks in tasks.items():
        message, count = min(messages[name].items(), key=lambda item: (-item[1], item[0]))
        samples = messages[name].total()
        found.append(
            ErrorClass(name=name, tasks=len(of_tasks), samples=samples, message=message, message_samples=count)
        )
    return sorted(found, key=lambda each: (-each.tasks, each.name))


def normalised(message: str) -> str:
    """Returns the first line of a message without what differs from program to program.

    >>> normalised("name 'foo' is not defined")
    "name 'X' is not defined"
    """
    lines = message.splitlines()
    return _QUOTED.sub("'X'", lines[0])[:MESSAGE_CHARACTERS] if lines else ""
