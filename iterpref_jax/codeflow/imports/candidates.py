"""What a reader yields: a task with tests and versions that nobody has verified, or why there is none."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

from iterpref_jax.codeflow import stdin_cases

Order = Literal["until_pass", "whole", "pool"]
# Of the sandbox's styles, those whose tests are code, and the one whose tests are cases.
CODE_STYLES = ("script", "unittest", "pytest")
STYLES = (*CODE_STYLES, stdin_cases.STYLE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class State:
    """A version as it was found; `recorded` is whether the source says that it passes (None: it says nothing)."""

    code: str
    recorded: bool | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """Versions of one task that may become trajectories.

    `order`: "until_pass", a history in the order of time that ends at its first pass; "whole", one whose last version
    is final; "pool", programs in no order, of which each right one is put together with the nearest wrong one.
    `tests` are what `style` says; `name` becomes the `task_id` (a repeated one gets a number).
    """

    name: str
    task: str
    source: str
    instruction: str
    setup: str
    tests: str
    style: str
    states: tuple[State, ...]
    order: Order
    meta: dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dropped:
    """What gave no candidate, or a candidate that gave no trajectory; `reason` is a name of `REASONS`."""

    name: str
    reason: str


Item = Candidate | Dropped


class Reason(NamedTuple):
    """The name of a reason to keep nothing, and what it means."""

    name: str
    meaning: str


REASONS = (
    Reason("no_tests", "no tests for the task, neither in the row nor in the file of tests"),
    Reason("no_instruction", "nothing says what the task is"),
    Reason("no_code", "no program was found where the form has one"),
    Reason("one_version", "fewer than two different versions"),
    Reason("other_language", "not Python 3"),
    Reason("not_self_contained", "the file imports its neighbours, so it cannot be judged alone"),
    Reason("other_style", "the tests need a style that this sandbox does not run"),
    Reason("never_passes", "no version passes the tests"),
    Reason("final_fails", "the final version does not pass the tests"),
    Reason("no_failing_version", "no version before the final one fails"),
    Reason("flaky", "the final version passes with some hash seeds only"),
    Reason("vacuous", "the tests pass a program whose functions return None, or check nothing"),
    Reason("unjudged", "the run of the final version says nothing about it (tampered, no_tests, sandbox_error)"),
    Reason("duplicate", "the same task with the same versions came before"),
)
