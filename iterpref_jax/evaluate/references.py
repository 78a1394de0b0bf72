"""What reference solutions answer to a benchmark's inputs, and programs that are held against that."""

from __future__ import annotations

from collections.abc import Sequence

from iterpref_jax.codeflow.sandbox import UNKNOWN, Case, Program, Sandbox, Verdict
from iterpref_jax.errors import UserError
from iterpref_jax.evaluate import oracles
from iterpref_jax.evaluate.tasks import CallTests, Task
from iterpref_jax.progress import progress

# Before the program, in names of its own. What a program prints is no part of its judgement (EvalPlus throws it away).
SILENCE = """
import io, sys

class Silence(io.TextIOBase):
    def write(self, text):
        return len(text)

sys.stdout = sys.stderr = Silence()
"""
# Of a long answer a hash is sent that is the same for equal values (1, 1.0 and True are equal): HumanEval/130 and
# Mbpp/255 answer with hundreds of megabytes. Fractions are sent as they are: they may be close without being equal.
ANSWER = """
import hashlib

AS_THEY_ARE = {int, str, type(None)}

def same(value):
    kind = type(value)
    if kind is list or kind is tuple:
        return value if set(map(type, value)) <= AS_THEY_ARE else kind(map(same, value))
    if kind is bool or (kind is float and value.is_integer()):
        return int(value)
    if kind in AS_THEY_ARE or (kind is float and value == value):
        return value
    raise TypeError

def answer(*args):
    if name not in program:
        raise NameError(f"name {name!r} is not defined")
    found = program[name](*args)
    if type(found) not in (str, list, tuple) or len(found) < 1000:
        return found
    if set(map(type, found)) == {float} and not all(map(float.is_integer, found)):
        return found
    try:
        text = repr(same(found))
    except (TypeError, ValueError):
        return found
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() if len(text) > 65536 else found

program["_answer"] = answer
"""


# The cases of calls, by the identity of their tests, which live as long as their benchmark.
Answers = dict[int, tuple[Case, ...]]


def answers(sandbox: Sandbox, tasks: Sequence[Task], floor_s: float, factor: float) -> Answers:
    """Runs the reference of every suite of calls; a case may then take `factor` times as long, and `floor_s` at least.

    Raises UserError for a reference that does not answer all of its inputs here.
    """
    named = {
        id(suite.tests): (task.task_id, suite.tests)
        for task in tasks
        for suite in task.suites
        if isinstance(suite.tests, CallTests)
    }
    if not named:
        return {}
    asked, found = list(named.values()), {}
    with progress("reference solutions", sum(len(tests.inputs) for _, tests in asked), "inputs") as advance:

        def ended(place: int, verdict: Verdict) -> None:
            name, tests = asked[place]
            found[id(tests)] = _expecting(name, tests, verdict, floor_s, factor)
            advance(len(tests.inputs))

        sandbox.run_all([_asked(tests) for _, tests in asked], ended)
    return found


def program(tests: CallTests, code: str, cases: tuple[Case, ...]) -> Program:
    """Returns the run of a program on cases."""
    return Program(
        code=code,
        setup=f"exec({SILENCE + ANSWER!r}, {{'program': globals(), 'name': {tests.entry_point!r}}})\n",
        style="io",
        entry_point="_answer",
        cases=cases,
        compare=oracles.comparator(tests.oracle, tests.atol),
    )


def _asked(tests: CallTests) -> Program:
    return program(tests, tests.reference, tuple(Case(inputs=inputs, expected=UNKNOWN) for inputs in tests.inputs))


def _expecting(name: str, tests: CallTests, verdict: Verdict, floor_s: float, factor: float) -> tuple[Case, ...]:
    if verdict.status != "no_tests" or len(verdict.cases) != len(tests.inputs):
        why = verdict.message or verdict.error_type or verdict.status
        raise UserError(f"{name}: the reference does not answer all of its inputs here: {why}")
    is_none_asked = tests.oracle == "not_none"
    return tuple(
        Case(
            inputs=inputs,
            expected=outcome.output is not None if is_none_asked else outcome.output,
            wall_s=max(floor_s, factor * outcome.seconds),
        )
        for inputs, outcome in zip(tests.inputs, verdict.cases, strict=True)
    )
