"""From what a program answered to each case to a verdict: the comparison, which no program can reach."""

from __future__ import annotations

import dataclasses
import math
import re
import reprlib
from collections.abc import Callable, Sequence
from typing import Any

from iterpref_jax.codeflow.sandbox import typed
from iterpref_jax.codeflow.sandbox.child import printable
from iterpref_jax.codeflow.sandbox.comparators import EXACT, LINES, Comparator
from iterpref_jax.codeflow.sandbox.verdict import FAILING, UNKNOWN, Case, CaseOutcome, Program, Verdict

# number, status, error_type, message, last_frame, traceback, seconds, output
CASE_FIELDS = 8
# Addresses differ from run to run; equal runs must give equal records.
ADDRESS = re.compile(r"\b0x[0-9a-f]{8,}")
_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = 80


def outcomes_of(events: Sequence[tuple[str, ...]]) -> tuple[CaseOutcome, ...]:
    """Returns what a child said of its cases, not compared yet, outputs as they were sent.

    Raises ValueError for what the harness does not send.
    """
    events = [event for event in events if event != ("loaded",)]
    found = []
    for number, (name, *fields) in enumerate(events):
        if name != "case" or len(fields) != CASE_FIELDS or fields[0] != str(number):
            raise ValueError(f"not the report of case {number}")
        _, status, error_type, message, last_frame, traceback, seconds, output = fields
        if status not in FAILING and status != "no_tests":
            raise ValueError(f"not the status of a case: {status!r}")
        found.append(
            CaseOutcome(
                status=status,
                error_type=error_type,
                message=without_addresses(message),
                last_frame=last_frame,
                traceback=without_addresses(traceback),
                seconds=measured(seconds),
                output=output,
            )
        )
    return tuple(found)


def measured(text: str) -> float:
    """Returns what a child measured; raises ValueError for what no child that is sane does: it could not be stored."""
    number = float(text)
    if not 0 <= number < math.inf:
        raise ValueError(f"not a measured number: {text[:100]!r}")
    return number


def without_addresses(text: str) -> str:
    return ADDRESS.sub("0x...", text)


def compared(program: Program, verdict: Verdict) -> Verdict:
    """Holds the outputs of a program with cases against what is expected; other verdicts are returned as they are.

    A pass is a right output for every case. Where some expected output is UNKNOWN, and all else is right, the verdict
    is `no_tests`. The first case that is not right gives the verdict its words.
    """
    if not program.cases or verdict.status in ("tampered", "sandbox_error"):
        return verdict
    if len(verdict.cases) > len(program.cases):
        return _with(verdict, (), "tampered", "Tampered", "more cases were answered than sent")
    comparator = program.compare or (LINES if program.style == "stdin" else EXACT)
    pairs = zip(program.cases, verdict.cases, strict=False)
    outcomes = tuple(_compared(case, outcome, comparator, program.style) for case, outcome in pairs)
    for number, outcome in enumerate(outcomes):
        if outcome.status not in ("pass", "no_tests"):
            message = f"case {number}: {outcome.message}"
            found = _with(verdict, outcomes, outcome.status, outcome.error_type, message)
            return dataclasses.replace(found, last_frame=outcome.last_frame, traceback=outcome.traceback or message)
    if verdict.status in FAILING:
        return _with(verdict, outcomes, verdict.status, verdict.error_type, verdict.message)
    if len(outcomes) < len(program.cases):
        return _with(verdict, outcomes, "tampered", "Tampered", "fewer cases were answered than sent")
    known = all(outcome.passed for outcome in outcomes)
    return _with(verdict, outcomes, "pass" if known else "no_tests", "", "")


def unanswered(program: Program) -> Program:
    """Returns `program` with nothing expected of its cases."""
    return dataclasses.replace(
        program, cases=tuple(dataclasses.replace(case, expected=UNKNOWN) for case in program.cases)
    )


def answered(program: Program, verdict: Verdict) -> tuple[Case, ...]:
    """Returns the cases of `program` with its own outputs as the expected ones; `verdict` is that of its run.

    Raises ValueError, which says what happened, where it did not answer all of them.
    """
    if verdict.status not in ("pass", "no_tests"):
        raise ValueError(f"{verdict.status}: {verdict.message or verdict.error_type}")
    pairs = zip(program.cases, verdict.cases, strict=True)
    return tuple(dataclasses.replace(case, expected=outcome.output) for case, outcome in pairs)


def _with(verdict: Verdict, outcomes: tuple[CaseOutcome, ...], status: str, error_type: str, message: str) -> Verdict:
    return dataclasses.replace(
        verdict,
        status=status,
        error_type=error_type,
        message=message,
        tests_run=len(outcomes),
        tests_passed=sum(outcome.passed for outcome in outcomes),
        cases=outcomes,
    )


def _compared(case: Case, outcome: CaseOutcome, comparator: Comparator, style: str) -> CaseOutcome:
    if outcome.status in FAILING:
        return dataclasses.replace(outcome, output=None)
    if style == "io":
        try:
            output, opaque = typed.from_json(outcome.output)
        except ValueError as error:
            return dataclasses.replace(
                outcome, status="error", error_type="Unreadable", message=printable(str(error)), output=None
            )
        outcome = dataclasses.replace(outcome, output=output)
        if opaque and not comparator.takes_opaque:
            message = printable(f"an output of type {opaque[0]} cannot be compared")
            return dataclasses.replace(outcome, status="error", error_type="OpaqueOutput", message=message)
    if case.expected is UNKNOWN:
        return outcome
    try:
        holds = comparator.holds(case.inputs, outcome.output, case.expected)
    except Exception as error:
        message = printable(f"comparator {comparator.name}: {type(error).__name__}: {error}")
        return dataclasses.replace(outcome, status="fail", error_type="WrongOutput", message=message[:1000])
    if holds:
        return dataclasses.replace(outcome, status="pass")
    message = f"{comparator.name}: wanted {_shown(case.expected)}, got {_shown(outcome.output)}"
    return dataclasses.replace(outcome, status="fail", error_type="WrongOutput", message=message)


def _shown(value: Any) -> str:
    return printable(written(value, _SHOWN.repr))


def written(value: Any, write: Callable[[Any], str] = repr) -> str:
    """Returns what `write` makes of a program's value, which may hold an int of more digits than Python writes."""
    try:
        return write(value)
    except ValueError:
        return f"a large {type(value).__name__}"
