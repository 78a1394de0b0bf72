"""What reference solutions answer to a benchmark's inputs, and programs that are held against that."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from iterpref_jax.codeflow.sandbox import UNKNOWN, Case, Program, Sandbox, Verdict
from iterpref_jax.errors import UserError
from iterpref_jax.evaluate import oracles
from iterpref_jax.evaluate.tasks import CallTests, Task
from iterpref_jax.progress import progress

# Into so many a suite is cut whose answers are too long for one run (HumanEval/130: 200 MB of lists).
PARTS = 16
# Before the program, in names of its own. What a program prints is no part of its judgement (EvalPlus throws it away),
# and of a long text its hash is as good as itself: HumanEval/15 answers with 150 MB.
SILENCE = """
import io, sys

class Silence(io.TextIOBase):
    def write(self, text):
        return len(text)

sys.stdout = sys.stderr = Silence()
"""
ANSWER = """
import hashlib

def answer(*args):
    if name not in program:
        raise NameError(f"name {name!r} is not defined")
    found = program[name](*args)
    if type(found) is str and len(found) > 4096:
        return hashlib.sha256(found.encode("utf-8", "surrogatepass")).digest()
    return found

program["_answer"] = answer
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """Cases that are run together, from number `start` on; `atol` is the tolerance that those before switched on."""

    start: int
    cases: tuple[Case, ...]
    atol: float = 0.0


# By the identity of the tests, which live as long as their benchmark.
Answers = dict[int, list[Part]]


def answers(sandbox: Sandbox, tasks: Sequence[Task], floor_s: float, factor: float) -> Answers:
    """Runs the reference of every suite of calls; a case may then take `factor` times as long, and `floor_s` at least.

    A suite whose answers are too long for one run is run in parts. Raises UserError for a reference that does not
    answer all of its inputs here.
    """
    named = {
        id(suite.tests): (task.task_id, suite.tests)
        for task in tasks
        for suite in task.suites
        if isinstance(suite.tests, CallTests)
    }
    found: Answers = {key: [] for key in named}
    left = [(name, tests, 0, len(tests.inputs)) for name, tests in named.values()]
    with progress("reference solutions", sum(end for *_, end in left), "inputs") as advance:
        while left:
            runs, smaller = left, []

            def ended(place: int, verdict: Verdict, runs=runs, smaller=smaller) -> None:
                name, tests, start, end = runs[place]
                if verdict.status == "output_limit" and end - start > 1:
                    step = -(-(end - start) // PARTS)
                    smaller.extend((name, tests, at, min(at + step, end)) for at in range(start, end, step))
                    return
                _check(name, verdict, end - start)
                found[id(tests)].append(Part(start=start, cases=_expecting(tests, start, verdict, floor_s, factor)))
                advance(end - start)

            sandbox.run_all([_asked(tests, start, end) for _, tests, start, end in runs], ended)
            left = smaller
    return {key: _in_order(tests, found[key]) for key, (_, tests) in named.items()}


def programs(tests: CallTests, code: str, expected: Answers) -> list[Program]:
    """Returns a program's runs, a part of the cases each."""
    return [_program(tests, code, part.cases, part.atol) for part in expected[id(tests)]]


def _asked(tests: CallTests, start: int, end: int) -> Program:
    cases = tuple(Case(inputs=inputs, expected=UNKNOWN) for inputs in tests.inputs[start:end])
    return _program(tests, tests.reference, cases, tests.atol)


def _program(tests: CallTests, code: str, cases: tuple[Case, ...], atol: float) -> Program:
    return Program(
        code=code,
        setup=f"exec({SILENCE + ANSWER!r}, {{'program': globals(), 'name': {tests.entry_point!r}}})\n",
        style="io",
        entry_point="_answer",
        cases=cases,
        compare=oracles.comparator(tests.oracle, atol),
    )


def _check(name: str, verdict: Verdict, count: int) -> None:
    if verdict.status != "no_tests" or len(verdict.cases) != count:
        why = verdict.message or verdict.error_type or verdict.status
        raise UserError(f"{name}: the reference does not answer all of its inputs here: {why}")


def _expecting(tests: CallTests, start: int, verdict: Verdict, floor_s: float, factor: float) -> tuple[Case, ...]:
    is_none_asked = tests.oracle == "not_none"
    return tuple(
        Case(
            inputs=inputs,
            expected=outcome.output is not None if is_none_asked else outcome.output,
            wall_s=max(floor_s, factor * outcome.seconds),
        )
        for inputs, outcome in zip(tests.inputs[start : start + len(verdict.cases)], verdict.cases, strict=True)
    )


def _in_order(tests: CallTests, parts: list[Part]) -> list[Part]:
    atol, found = tests.atol, []
    for part in sorted(parts, key=lambda part: part.start):
        found.append(dataclasses.replace(part, atol=atol))
        if not atol and any(oracles.is_floats(case.expected) for case in part.cases):
            atol = oracles.ATOL
    return found
