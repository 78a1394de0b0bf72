"""Runs inside the sandbox: calls of a program against those of a reference, compared as EvalPlus compares them.

The file's text becomes part of a test script, so it imports nothing of ours. Comparison: `==`; floats within
rtol 1e-7 and atol 1e-6, which once switched on stays on for the rest of the task, as in EvalPlus.
"""

import copy
import math
import signal
import time
from typing import Any

RTOL = 1e-07
# Of all calls of one program; a little more for what EvalPlus does around them.
TOTAL_S = 60.0


class CallTimeout(BaseException):
    """A call took longer than its limit; no `except Exception` of the program catches it."""


def _polynomial(coefficients, x):
    return sum(coefficient * math.pow(x, power) for power, coefficient in enumerate(coefficients))


def _surface_area(base_edge, height):
    slant = math.sqrt((base_edge / 2) ** 2 + height**2)
    return round(base_edge**2 + 2 * base_edge * slant)


def _digit_distance(one, other):
    one, other = str(one), str(other)
    width = max(len(one), len(other))
    return sum(abs(int(a) - int(b)) for a, b in zip(one.zfill(width), other.zfill(width), strict=True))


def _not_none(out, want):
    return out == want if isinstance(out, bool) else want == (out is not None)


# Name -> whether an output is right, given the arguments, what is wanted, and the tolerance.
ORACLES = {
    "": lambda out, args, want, atol: out == want,
    "anything": lambda out, args, want, atol: True,
    "or_zero": lambda out, args, want, atol: out == want or out == 0,
    "surface_area": lambda out, args, want, atol: out == want or abs(out - _surface_area(*args)) <= atol,
    "digit_distance": lambda out, args, want, atol: out == want or out == _digit_distance(*args),
    "set": lambda out, args, want, atol: set(out) == set(want),
    "not_none": lambda out, args, want, atol: _not_none(out, want),
    "root": lambda out, args, want, atol: abs(_polynomial(args[0], out)) <= atol,
}


def is_floats(value):
    if isinstance(value, (list, tuple)) and value:
        return all(isinstance(item, float) for item in value)
    return isinstance(value, float)


def is_close(out, want, atol):
    """Says what `numpy.allclose` says of numbers and of lists of them, without the time that numpy takes to load."""
    if isinstance(want, (list, tuple)):
        return len(out) == len(want) and all(is_close(a, b, atol) for a, b in zip(out, want, strict=True))
    return out == want or abs(out - want) <= atol + RTOL * abs(want)


def is_right(out, want, args, oracle, atol):
    if out == object():
        raise AssertionError("the result equals everything that it is compared with")
    right = ORACLES[oracle](out, args, want, atol)
    if right or not atol or oracle == "root":
        return right
    return type(out) is type(want) and is_close(out, want, atol)


def _on_alarm(number, frame):
    raise CallTimeout


def _limited(call, seconds):
    signal.signal(signal.SIGALRM, _on_alarm)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        return call()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _shown(*values):
    text = ", ".join(map(repr, values))
    return text if len(text) <= 200 else text[:140] + " ... " + text[-50:]


def check(name, candidate, source, inputs, atol, oracle, floor_s, factor):
    """Raises for the first input that the candidate does not answer as the reference of `source` does, and in time.

    `inputs` is the `repr` of a list of tuples of arguments.
    """
    left, space = TOTAL_S, {"__name__": "reference"}
    exec(source, space)
    reference: Any = space[name]
    for args in eval(inputs, {"inf": math.inf, "nan": math.nan}):
        given, began = copy.deepcopy(args), time.perf_counter()
        want = reference(*given)
        limit = max(floor_s, factor * (time.perf_counter() - began))
        if oracle == "not_none":
            want = want is not None
        shown, began = _shown(*args), time.perf_counter()
        try:
            out = _limited(lambda args=args: candidate(*args), min(limit, max(left, 0.001)))
        except CallTimeout:
            raise CallTimeout(f"{name}({shown}) took longer than {min(limit, left):.1f} s") from None
        left -= time.perf_counter() - began
        if not atol and is_floats(want):
            atol = 1e-6
        if not is_right(out, want, args, oracle, atol):
            raise AssertionError(f"{name}({shown}) gave {_shown(out)}, wanted {_shown(want)}")
