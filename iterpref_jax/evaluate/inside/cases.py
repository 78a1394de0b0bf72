"""Runs inside the sandbox: LiveCodeBench's two kinds of cases, compared as it compares them.

The file's text becomes part of a test script, so it imports nothing of ours.
"""

import io
import json
import signal
import sys
from decimal import Decimal, InvalidOperation


class CaseTimeout(BaseException):
    """A case took longer than its limit; no `except Exception` of the program catches it."""


def _on_alarm(number, frame):
    raise CaseTimeout


def _limited(call, seconds):
    signal.signal(signal.SIGALRM, _on_alarm)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        return call()
    except CaseTimeout:
        raise CaseTimeout(f"longer than {seconds:g} s") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _shown(value):
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 200 else text[:140] + " ... " + text[-50:]


def _decimals(line):
    try:
        return [Decimal(word) for word in line.split()]
    except InvalidOperation:
        return None


def is_same_text(printed, wanted):
    """Line by line, stripped; lines that differ may still be the same numbers."""
    lines, others = ([line.strip() for line in text.strip().split("\n")] for text in (printed, wanted))
    if len(lines) != len(others):
        return False
    pairs = zip(lines, others, strict=True)
    return all(a == b or (_decimals(a) is not None and _decimals(a) == _decimals(b)) for a, b in pairs)


class Input(io.TextIOWrapper):
    """Standard input of one case, with the `buffer` that fast programs read."""

    def __init__(self, text):
        super().__init__(io.BytesIO(text.encode()), encoding="utf-8")


def _printed(setup, program, text):
    kept, space = (sys.stdin, sys.stdout), {"__name__": "__main__"}
    exec(setup, space)
    sys.stdin, sys.stdout = Input(text), io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    try:
        exec(program, space)
    except SystemExit:
        pass
    finally:
        out, (sys.stdin, sys.stdout) = sys.stdout, kept
    return out.buffer.getvalue().decode("utf-8", "replace")


def check_printed(setup, source, cases, case_s):
    """Runs a program anew for every case; raises for the first that it does not answer, or not in time."""
    setup = compile(setup, "<setup>", "exec", dont_inherit=True)
    program = compile(source, "<code>", "exec", dont_inherit=True)
    for text, wanted in cases:
        printed = _limited(lambda text=text: _printed(setup, program, text), case_s)
        if not is_same_text(printed, wanted):
            raise AssertionError(f"for {_shown(text)!r} it printed {_shown(printed)!r}, wanted {_shown(wanted)!r}")


def check_returned(function, cases, case_s):
    """Calls a function for every case; raises for the first that it does not answer, or not in time."""
    for text, wanted in cases:
        args, want = [json.loads(line) for line in text.split("\n")], json.loads(wanted)
        out = _limited(lambda args=args: function(*args), case_s)
        if isinstance(out, tuple):
            out = list(out)
        if not out == want:
            raise AssertionError(f"for {_shown(text)!r} it returned {_shown(out)}, wanted {_shown(want)}")
