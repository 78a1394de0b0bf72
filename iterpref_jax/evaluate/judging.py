"""From a program and a suite of tests to an outcome: the one place that knows the sandbox's styles.

Where a benchmark has inputs and outputs, only inputs enter the sandbox and outputs are compared outside of it: what is
expected is what the reference answers there, and a program has nothing to forge. Scripts of assertions and unittest
files run in the program's own process (`codeflow.sandbox` says what that can and cannot prove).
"""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

from iterpref_jax.codeflow.runs import Subject
from iterpref_jax.codeflow.sandbox import COMPARATORS, Case, Program, Sandbox, Verdict
from iterpref_jax.codeflow.sandbox.cases import written
from iterpref_jax.errors import UserError, did_you_mean
from iterpref_jax.evaluate import references
from iterpref_jax.evaluate.tasks import (
    CallTests,
    MethodTests,
    ScriptTests,
    StdinTests,
    StoredTests,
    Suite,
    Task,
    Tests,
    UnitTests,
)

# Which EvalPlus a score is to be compared with -> least seconds of a call, times the reference's; and what the
# release 0.3.1 never counts as passed, because its oracle leaves the loop before the result is stored.
COMPAT = {"head": (4.0, 4.0), "evalplus-0.3.1": (1.0, 4.0)}
NEVER_PASSED = {"head": frozenset(), "evalplus-0.3.1": frozenset({"HumanEval/32"})}
# As many as a program may wait for its turn: the texts of more need not be held.
BATCH = 64
NEVER = "evalplus-0.3.1 counts no solution of this task as passed"
# A wrong output is what an assertion would have found.
WRONG, ASSERTION = "WrongOutput", "AssertionError"
SHOWN_CHARACTERS = 200
# BigCodeBench's program and tests are one module: some published solutions need what only their tests import. Tests
# patch names of libraries, never of that module.
BEFORE = "import solution as _solution\nglobals().update(vars(_solution))\n"
AFTER = "vars(_solution).update({name: value for name, value in globals().items() if name[:2] != '__'})\n"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one program did in one suite; the fields are those of a sandbox's verdict, of the first test that failed.

    `failing` counts the failing tests by the class of their errors.
    """

    suite: str
    status: str
    error_type: str
    message: str
    last_frame: str
    traceback: str
    seconds: float
    failing: dict[str, int]

    @property
    def passed(self) -> bool:
        return self.status == "pass"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judged:
    """The outcomes of one program, up to the first suite that it does not pass."""

    outcomes: tuple[Outcome, ...]
    tier: str

    @property
    def failed(self) -> Outcome | None:
        return next((outcome for outcome in self.outcomes if not outcome.passed), None)

    def passes(self, suite: str) -> bool:
        """True if the program passes the suite and all before it."""
        return any(outcome.suite == suite and outcome.passed for outcome in self.outcomes)


def check_compat(compat: str) -> None:
    """Raises UserError for a name that is not in `COMPAT`."""
    if compat not in COMPAT:
        raise UserError(
            f"evaluate.compat: {compat!r} is not known{did_you_mean(compat, COMPAT)}; known: {', '.join(COMPAT)}"
        )


def judge_all(
    sandbox: Sandbox,
    programs: Sequence[tuple[Task, str]],
    compat: str,
    on_done: Callable[[int, Judged], None],
) -> None:
    """Judges programs, several at a time; `on_done(index, judged)` is called in the order in which they end.

    Raises:
        UserError: a reference solution does not answer its own inputs here.
    """
    going: list[_Judging] = []
    for index, (task, code) in enumerate(programs):
        if task.task_id in NEVER_PASSED[compat]:
            on_done(index, Judged(outcomes=(_never(task),), tier=""))
        else:
            going.append(_Judging(index, task, code))
    expected = references.answers(sandbox, [each.task for each in going], *COMPAT[compat])
    for first in range(0, len(going), BATCH):
        _judge_batch(sandbox, going[first : first + BATCH], expected, on_done)


class _Judging:
    """One program on its way through the suites of its task."""

    def __init__(self, index: int, task: Task, code: str):
        self.index, self.task, self._code = index, task, code
        self._outcomes: list[Outcome] = []
        self._run: Program

    def begin_suite(self, expected: references.Answers) -> Program:
        self._run = program_of(self._suite.tests, self._code, expected)
        return self._run

    def end_suite(self, verdict: Verdict) -> Judged | None:
        """Returns what came of the program, or None if there is more to run."""
        self._outcomes.append(_outcome(self._suite, self._run, verdict))
        if verdict.passed and len(self._outcomes) < len(self.task.suites):
            return None
        return Judged(outcomes=tuple(self._outcomes), tier=verdict.tier)

    @property
    def _suite(self) -> Suite:
        return self.task.suites[len(self._outcomes)]


def _judge_batch(
    sandbox: Sandbox,
    going: Sequence[_Judging],
    expected: references.Answers,
    on_done: Callable[[int, Judged], None],
) -> None:
    while going:
        more: list[_Judging] = []

        def ended(place: int, verdict: Verdict, going=going, more=more) -> None:
            judged = going[place].end_suite(verdict)
            if judged is None:
                more.append(going[place])
            else:
                on_done(going[place].index, judged)

        sandbox.run_all([each.begin_suite(expected) for each in going], ended)
        going = more


def program_of(tests: Tests, code: str, expected: references.Answers) -> Program:
    """Returns what the sandbox runs for these tests."""
    match tests:
        case ScriptTests():
            return Program(code=code, tests=tests.tests, setup=tests.setup, style="script")
        case UnitTests():
            return Program(code=code, tests=f"{BEFORE}{tests.tests}\n{AFTER}", setup="", style="unittest")
        case CallTests():
            return references.program(tests, code, expected[id(tests)])
        case StdinTests():
            cases = tuple(Case(inputs=text, expected=wanted, wall_s=tests.case_s) for text, wanted in tests.cases)
            return Program(code=code, setup=tests.setup, style="stdin", cases=cases, compare=COMPARATORS["lines"])
        case MethodTests():
            return _method(tests, code)
        case StoredTests():
            # As the importer judged it.
            return Subject(style=tests.style, setup=tests.setup, tests=tests.tests, code=code).program()


def _method(tests: MethodTests, code: str) -> Program:
    owner = "Solution." if "class Solution" in code else ""
    cases = tuple(
        Case(
            inputs=tuple(json.loads(line) for line in text.split("\n")),
            expected=json.loads(wanted),
            wall_s=tests.case_s,
        )
        for text, wanted in tests.cases
    )
    return Program(
        code=code,
        setup=f"{tests.setup}exec({references.SILENCE!r}, {{}})\n",
        style="io",
        entry_point=owner + tests.entry_point,
        cases=cases,
        compare=COMPARATORS["tuple_as_list"],
    )


def _outcome(suite: Suite, program: Program, verdict: Verdict) -> Outcome:
    message, number = verdict.message, next((i for i, case in enumerate(verdict.cases) if not case.passed), None)
    if program.cases and verdict.error_type == "Timeout" and number is None:
        number = len(verdict.cases)
    if number is not None and number < len(program.cases) and not verdict.passed:
        message = _of_case(suite.tests, program, verdict, number)
    types = [case.error_type for case in verdict.cases if not case.passed] or [verdict.error_type or verdict.status]
    return Outcome(
        suite=suite.name,
        status=verdict.status,
        error_type=_class(verdict.error_type),
        message=message,
        last_frame=verdict.last_frame,
        traceback="" if verdict.error_type == WRONG else verdict.traceback,
        seconds=verdict.seconds,
        failing={} if verdict.passed else dict(collections.Counter(map(_class, types))),
    )


def _class(error_type: str) -> str:
    return ASSERTION if error_type == WRONG else error_type


def _of_case(tests: Tests, program: Program, verdict: Verdict, number: int) -> str:
    """Says what a case gave and what it should have given, or what went wrong in it."""
    case = program.cases[number]
    given = f"for {_shown(case.inputs)}" if program.style == "stdin" else f"{_called(tests)}({_args(case)})"
    if number >= len(verdict.cases):
        return f"{given}: {verdict.message}"
    outcome = verdict.cases[number]
    if outcome.error_type != WRONG:
        return outcome.message if outcome.status == "error" else f"{given}: {outcome.message}"
    return f"{given} gave {_shown(outcome.output)}, wanted {_shown(case.expected)}"


def _called(tests: Tests) -> str:
    return tests.entry_point if isinstance(tests, CallTests | MethodTests) else ""


def _args(case: Case) -> str:
    return _cut(", ".join(map(written, case.inputs)))


def _shown(value: Any) -> str:
    return _cut(written(value))


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:140]} ... {text[-50:]}"


def _never(task: Task) -> Outcome:
    return Outcome(
        suite=task.suites[0].name,
        status="fail",
        error_type="NeverPassed",
        message=NEVER,
        last_frame="",
        traceback=f"NeverPassed: {NEVER}",
        seconds=0.0,
        failing={"NeverPassed": 1},
    )
