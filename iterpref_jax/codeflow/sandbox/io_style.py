"""The style "io", inside the child: calls one function on inputs and says what came back; what should have is not here.

A part of the harness that a request brings. Standard library only; no import of ours.
"""

from __future__ import annotations

import os
import sys
import time


def judge(harness, report, free_reserve, sources: dict[str, str], fields: list[str]) -> None:
    """Reports `loaded`, a `case` each (number, status, what is wrong in 4 fields, seconds, output), and `done`."""
    output_chars, entry_point, *cases = fields
    leave, done, set_depth, depth = os._exit, harness.done_fields, sys.setrecursionlimit, sys.getrecursionlimit()
    outcome = harness.Outcome()
    try:
        called = _entry(_load(harness, sources), entry_point)
    except BaseException as error:
        free_reserve()
        outcome.blame(error, sources)
        report(done(outcome))
        leave(0)
    report(["loaded"])
    for number, text in enumerate(cases):
        case = harness.Outcome()
        seconds, output = _call(harness.typed, called, text, int(output_chars), case, sources, free_reserve)
        set_depth(depth)
        report(["case", str(number), *case.fields()[:5], repr(seconds), output])
    # Nothing has been compared yet.
    outcome.status = "no_tests"
    report(done(outcome))
    leave(0)


def _load(harness, sources: dict[str, str]) -> dict:
    space = harness.module("solution")
    for label in (harness.SETUP, harness.CODE):
        exec(compile(sources[label], label, "exec", dont_inherit=True), space)
    return space


def _entry(space: dict, entry_point: str):
    """A function by its name, or as `Solution.add` a method of one object of a class that all cases share."""
    name, *attributes = entry_point.split(".")
    if name not in space:
        raise NameError(f"name {name!r} is not defined")
    found = space[name]
    for attribute in attributes:
        found = getattr(found() if isinstance(found, type) else found, attribute)
    return found


def _call(typed, called, text: str, most_chars: int, case, sources, free_reserve, clock=time.perf_counter):
    inputs, _ = typed.from_json(text)
    began = clock()
    try:
        output = called(*inputs)
        seconds = clock() - began
        sent = typed.to_json(output, most_chars)
        # It is not compared yet.
        case.status = "no_tests"
        return seconds, sent
    except typed.TooLarge as error:
        case.status, case.error_type, case.message = "output_limit", "OutputLimit", str(error)
        return clock() - began, ""
    except BaseException as error:
        seconds = clock() - began
        free_reserve()
        case.blame(error, sources)
        return seconds, ""
