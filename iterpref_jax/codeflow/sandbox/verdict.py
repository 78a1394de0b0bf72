"""What goes into a sandbox and what comes out."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal, get_args

from iterpref_jax.codeflow.sandbox import typed
from iterpref_jax.codeflow.sandbox.comparators import Comparator
from iterpref_jax.errors import UserError

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
    "flaky",
    "tampered",
    "sandbox_error",
]
STATUSES: tuple[str, ...] = get_args(Status)

# The program ran and did the wrong thing: a rejected version. The other statuses but `pass` say nothing about it.
FAILING: frozenset[str] = frozenset(
    {"fail", "error", "timeout", "memory_limit", "output_limit", "disk_limit", "early_exit"}
)

STYLES = ("script", "unittest", "pytest", "io", "stdin")
# Judged by cases, whose outputs are compared outside of the sandbox.
CASE_STYLES = ("io", "stdin")


class _Unknown:
    def __repr__(self) -> str:
        return "UNKNOWN"


# What is expected of a case that is run to find out.
UNKNOWN: Any = _Unknown()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One call, or one run of a script.

    Style "io": `inputs` are the positional arguments, `expected` the value that comes back. Style "stdin": `inputs` is
    the text on stdin, `expected` the text on stdout. `wall_s` limits it in seconds (None: as long as the whole run).
    """

    inputs: Any
    expected: Any
    wall_s: float | None = None

    @functools.cached_property
    def inputs_json(self) -> str:
        """`inputs` as `typed` writes them; raises UserError for a value that it has no form for."""
        try:
            text = typed.to_json(list(self.inputs), _MOST_INPUT_CHARS)
            _, opaque = typed.from_json(text)
        except ValueError as error:
            raise UserError(f"the inputs of a case cannot be sent: {error}") from None
        if opaque:
            raise UserError(f"the inputs of a case cannot be sent: there is no form for type {opaque[0]}")
        return text


_MOST_INPUT_CHARS = 256 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """A program and the tests that judge it.

    style "script": setup, code and tests run one after the other in one `__main__`, as one script would.
    style "unittest": setup and code are the module `solution`, tests the module `tests` that imports it.
    style "pytest": the same, run by pytest.
    style "io": setup and code are the module `solution`, whose `entry_point` ("add", or "Solution.add" for a method) is
    called with the inputs of each case, in one process; `compare` holds the outputs against what is expected.
    style "stdin": setup and code are a script, run anew for each case.

    With `coverage` the verdict counts the lines of `code` that ran ("script", "unittest" and "pytest").
    """

    code: str
    setup: str
    style: str
    tests: str = ""
    entry_point: str = ""
    cases: tuple[Case, ...] = ()
    compare: Comparator | None = None
    coverage: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaseOutcome:
    """What came of one case: a status as in Verdict; `no_tests` where the expected output is UNKNOWN.

    `output` is what came back (None if nothing did), `seconds` the wall time of the call as its own process took it.
    """

    status: str
    error_type: str
    message: str
    last_frame: str
    traceback: str
    seconds: float
    output: Any

    @property
    def passed(self) -> bool:
        return self.status == "pass"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """What one run says of a program; only `pass` counts as right and only `FAILING` counts as wrong.

    `traceback` is its last 4 KiB, with the file names `<setup>`, `<code>` and `<tests>`.
    """

    status: str
    error_type: str
    message: str
    traceback: str
    tier: str

    @property
    def passed(self) -> bool:
        return self.status == "pass"

    @property
    def failed(self) -> bool:
        return self.status in FAILING


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict(Finding):
    """The outcome of one run, with what was seen of it.

    `last_frame` is the innermost line of the program (`<code>:3 in add`). `tests_run` counts distinct checks. `seconds`
    is its wall time, `memory_mb` the peak resident size of the judged process (0.0 if it died before it could say).
    `gaps` names what the tier does not stop. `cases` are the outcomes of a program's cases, in order; those from the
    one in which a run was ended are missing. `lines_covered` of `lines_total` lines of the code ran (None if nobody
    asked, or nobody could say). `by_seed` are the hash seeds that were tried and what came of each, where flakiness was
    looked for.
    """

    last_frame: str
    tests_run: int
    tests_passed: int
    seconds: float
    memory_mb: float
    gaps: tuple[str, ...]
    cases: tuple[CaseOutcome, ...] = ()
    lines_covered: int | None = None
    lines_total: int | None = None
    by_seed: tuple[tuple[int, str], ...] = ()
