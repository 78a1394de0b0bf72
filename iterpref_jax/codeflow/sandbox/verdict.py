"""What goes into a sandbox and what comes out."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

Status = Literal[
    "pass",
    "fail",
    "error",
    "timeout",
    "memory_limit",
    "output_limit",
    "disk_limit",
    "early_exit",
    "no_tests",
    "vacuous",
    "tampered",
    "sandbox_error",
]
STATUSES: tuple[str, ...] = get_args(Status)

# The program ran and did the wrong thing: a rejected version. The other statuses but `pass` say nothing about it.
FAILING: frozenset[str] = frozenset(
    {"fail", "error", "timeout", "memory_limit", "output_limit", "disk_limit", "early_exit"}
)

STYLES = ("script", "unittest")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """A program and the tests that judge it.

    style "script": setup, code and tests run one after the other in one `__main__`, as one script would.
    style "unittest": setup and code are the module `solution`, tests the module `tests` that imports it.
    """

    code: str
    tests: str
    setup: str
    style: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """The outcome of one run; only `pass` counts as right and only `FAILING` counts as wrong.

    `last_frame` is the innermost line of the program (`<code>:3 in add`), `traceback` its last 4 KiB with the file
    names `<setup>`, `<code>` and `<tests>`. `tests_run` counts distinct checks. `seconds` is wall time, `memory_mb`
    the peak resident size of the judged process (0.0 if it died before it could say). `gaps` names what the tier does
    not stop.
    """

    status: str
    error_type: str
    message: str
    last_frame: str
    traceback: str
    tests_run: int
    tests_passed: int
    seconds: float
    memory_mb: float
    tier: str
    gaps: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return self.status == "pass"

    @property
    def failed(self) -> bool:
        return self.status in FAILING
