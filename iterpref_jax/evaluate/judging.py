"""From a program and a suite of tests to an outcome: the one place that knows the sandbox's styles.

Every suite becomes a script or a unittest file that runs in the program's own process (`codeflow.sandbox` says what
that can and cannot prove).
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import re
from collections.abc import Callable, Sequence
from typing import Any

from iterpref_jax.codeflow.sandbox import Program, Sandbox, Verdict
from iterpref_jax.errors import UserError, did_you_mean
from iterpref_jax.evaluate.tasks import CallTests, MethodTests, ScriptTests, StdinTests, Suite, Task, Tests, UnitTests

# Which EvalPlus a score is to be compared with -> least seconds of a call, times the reference's; and what the
# release 0.3.1 never counts as passed, because its oracle leaves the loop before the result is stored.
COMPAT = {"head": (4.0, 4.0), "evalplus-0.3.1": (1.0, 4.0)}
NEVER_PASSED = {"head": frozenset(), "evalplus-0.3.1": frozenset({"HumanEval/32"})}
# Raised by `inside/`: a limit of one call or case, within those of the whole program.
INNER_TIMEOUTS = ("CallTimeout", "CaseTimeout")
# As many as a program may wait for its turn: the texts of more need not be held.
BATCH = 64
_OWN_FRAMES = re.compile(r'  File "<tests>".*\n(    .*\n)?')
NEVER = "evalplus-0.3.1 counts no solution of this task as passed"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one program did in one suite; the fields are those of a sandbox's verdict."""

    suite: str
    status: str
    error_type: str
    message: str
    last_frame: str
    traceback: str
    seconds: float

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
    """Judges programs, several at a time; `on_done(index, judged)` is called in the order in which they end."""
    for first in range(0, len(programs), BATCH):
        _judge_batch(sandbox, programs[first : first + BATCH], compat, functools.partial(_shifted, on_done, first))


def _shifted(on_done: Callable[[int, Judged], None], first: int, index: int, judged: Judged) -> None:
    on_done(first + index, judged)


def _judge_batch(
    sandbox: Sandbox, programs: Sequence[tuple[Task, str]], compat: str, on_done: Callable[[int, Judged], None]
) -> None:
    found: dict[int, list[Outcome]] = {index: [] for index in range(len(programs))}
    waiting = list(found)
    while waiting:
        going, runs = [], []
        for index in waiting:
            task, code = programs[index]
            if task.task_id in NEVER_PASSED[compat]:
                on_done(index, Judged(outcomes=(_never(task),), tier=""))
            else:
                going.append(index)
                runs.append(program_of(task.suites[len(found[index])].tests, code, compat))
        waiting = []

        def ended(place: int, verdict: Verdict, going: list[int] = going, waiting: list[int] = waiting) -> None:
            index = going[place]
            suites = programs[index][0].suites
            found[index].append(_outcome(suites[len(found[index])], verdict))
            if verdict.passed and len(found[index]) < len(suites):
                waiting.append(index)
            else:
                on_done(index, Judged(outcomes=tuple(found[index]), tier=verdict.tier))

        sandbox.run_all(runs, ended)


def program_of(tests: Tests, code: str, compat: str) -> Program:
    """Returns what the sandbox runs for these tests."""
    match tests:
        case ScriptTests():
            return Program(code=code, tests=tests.tests, setup=tests.setup, style="script")
        case UnitTests():
            # Tests patch names of libraries, never of the module that the program is in.
            names = "import solution as _solution\nglobals().update(vars(_solution))\n"
            return Program(code=code, tests=names + tests.tests, setup="", style="unittest")
        case CallTests():
            return _calls(tests, code, compat)
        case StdinTests():
            call = f"_check_printed({tests.setup!r}, {code!r}, {list(tests.cases)!r}, {tests.case_s!r})"
            return Program(code="", tests=_checked("cases", "check_printed", call), setup="", style="script")
        case MethodTests():
            owner = "Solution()." if "class Solution" in code else ""
            call = f"_check_returned({owner}{tests.entry_point}, {list(tests.cases)!r}, {tests.case_s!r})"
            checked = _checked("cases", "check_returned", call)
            return Program(code=code, tests=checked, setup=tests.setup, style="script")


def _calls(tests: CallTests, code: str, compat: str) -> Program:
    floor_s, factor = COMPAT[compat]
    # One long text costs the parser nothing; a literal of as many values would be walked by the harness.
    call = (
        f"_check({tests.entry_point!r}, {tests.entry_point}, {tests.reference!r}, {repr(list(tests.inputs))!r}, "
        f"{tests.atol!r}, {tests.oracle!r}, {floor_s!r}, {factor!r})"
    )
    checked = _checked("calls", "check", call)
    return Program(code=code, tests=checked, setup=f"exec({_inside('silence')!r}, {{}})\n", style="script")


def _checked(name: str, function: str, call: str) -> str:
    """Calls a function of `inside/NAME.py` in a space of its own.

    A program must neither find there what it forgot to import nor lose a name to it.
    """
    space = f"_space = {{}}\nexec({_inside(name)!r}, _space)\n_{function} = _space[{function!r}]\n"
    # The harness counts checks, and asks for one.
    return f"{space}{call}\nassert True\n"


@functools.cache
def _inside(name: str) -> str:
    file = importlib.resources.files("iterpref_jax.evaluate") / "inside" / f"{name}.py"
    return file.read_text(encoding="utf-8")


def _outcome(suite: Suite, verdict: Verdict) -> Outcome:
    is_timeout = verdict.error_type in INNER_TIMEOUTS
    if isinstance(suite.tests, CallTests | StdinTests | MethodTests):
        # Our call of the program, whose arguments the message tells better.
        last_frame = "" if verdict.last_frame.startswith("<tests>") else verdict.last_frame
        verdict = dataclasses.replace(verdict, last_frame=last_frame, traceback=_OWN_FRAMES.sub("", verdict.traceback))
    fields: dict[str, Any] = {
        name: getattr(verdict, name) for name in ("message", "last_frame", "traceback", "seconds")
    }
    return Outcome(
        suite=suite.name,
        status="timeout" if is_timeout else verdict.status,
        error_type="Timeout" if is_timeout else verdict.error_type,
        **fields,
    )


def _never(task: Task) -> Outcome:
    return Outcome(
        suite=task.suites[0].name,
        status="fail",
        error_type="NeverPassed",
        message=NEVER,
        last_frame="",
        traceback=f"NeverPassed: {NEVER}",
        seconds=0.0,
    )
