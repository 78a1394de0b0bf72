"""How an output is held against what is expected: outside of the sandbox, on values of plain types."""

from __future__ import annotations

import dataclasses
import decimal
import math
from collections.abc import Callable
from typing import Any

from iterpref_jax.codeflow.sandbox import typed
from iterpref_jax.errors import UserError, did_you_mean

# Those of `numpy.testing.assert_allclose` and of EvalPlus.
RTOL, ATOL = 1e-7, 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparator:
    """`holds(inputs, output, expected)` says whether an output is right; one of your own is an oracle.

    The output holds None, bool, int, float, complex, str, bytes, bytearray, list, tuple, set, frozenset and dict alone,
    and with `takes_opaque` also `typed.Opaque`, which stands for a value of any other type. What `holds` raises makes
    the case a fail that says so.
    """

    name: str
    holds: Callable[[Any, Any, Any], bool]
    takes_opaque: bool = False


def named(name: str) -> Comparator:
    """Returns a comparator of `COMPARATORS`; raises UserError for a name that is not there."""
    if name not in COMPARATORS:
        known = ", ".join(COMPARATORS)
        raise UserError(f"comparator {name!r} is not known{did_you_mean(name, COMPARATORS)}; known: {known}")
    return COMPARATORS[name]


def _exact(_: Any, output: Any, expected: Any) -> bool:
    return bool(output == expected)


def _floats(_: Any, output: Any, expected: Any) -> bool:
    """Equal, or floats (or a list or tuple of floats) that are close, as in EvalPlus."""
    if output == expected:
        return True
    if type(output) is not type(expected) or not _is_floats(expected):
        return False
    pairs = [(output, expected)] if isinstance(expected, float) else list(zip(output, expected, strict=False))
    same_length = isinstance(expected, float) or len(output) == len(expected)
    return same_length and all(is_close(one, other) for one, other in pairs)


def is_close(output: Any, expected: float, *, rtol: float = RTOL, atol: float = ATOL) -> bool:
    """As `numpy.isclose`: NaN is close to nothing; False for what is no number."""
    if isinstance(output, complex) or not isinstance(output, int | float):
        return False
    if output == expected:
        return True
    try:
        return math.isfinite(expected) and abs(output - expected) <= atol + rtol * abs(expected)
    except OverflowError:
        # An int that no float can hold.
        return False


def _is_floats(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and all(isinstance(item, float) for item in value)
    return isinstance(value, float)


def _tuple_as_list(_: Any, output: Any, expected: Any) -> bool:
    """As LiveCodeBench judges calls: its expected values hold no tuples, so an output that is one is read as a list."""
    return bool((list(output) if isinstance(output, tuple) else output) == expected)


def _set_equal(_: Any, output: Any, expected: Any) -> bool:
    output = list(output)
    typed.check_keys(output)
    return set(output) == set(expected)


def _not_none(_: Any, output: Any, expected: Any) -> bool:
    """As three tasks of MBPP+: what is expected says whether there is a result, whatever it is."""
    wanted = expected if isinstance(expected, bool) else expected is not None
    return wanted == (output if isinstance(output, bool) else output is not None)


def _lines(_: Any, output: str, expected: str) -> bool:
    """As LiveCodeBench judges stdout: stripped lines, where these differ the Decimals of their tokens."""
    ours, theirs = ([line.strip() for line in text.strip().split("\n")] for text in (output, expected))
    return len(ours) == len(theirs) and all(map(_same_line, ours, theirs))


def _same_line(output: str, expected: str) -> bool:
    if output == expected:
        return True
    try:
        ours, theirs = ([decimal.Decimal(token) for token in line.split()] for line in (output, expected))
        return ours == theirs
    except decimal.InvalidOperation:
        # No number, or one that signals when it is compared.
        return False


EXACT = Comparator(name="exact", holds=_exact)
LINES = Comparator(name="lines", holds=_lines)
COMPARATORS = {
    comparator.name: comparator
    for comparator in (
        EXACT,
        LINES,
        Comparator(name="floats", holds=_floats),
        Comparator(name="tuple_as_list", holds=_tuple_as_list),
        Comparator(name="set_equal", holds=_set_equal),
        Comparator(name="not_none", holds=_not_none, takes_opaque=True),
    )
}
