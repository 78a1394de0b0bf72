"""EvalPlus' comparison of outputs, outside of the sandbox: `==`, floats that are close, and special oracles."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from iterpref_jax.codeflow.sandbox import Comparator
from iterpref_jax.codeflow.sandbox.comparators import is_close, named

# What EvalPlus takes for a task whose outputs are floats and that has no tolerance of its own.
ATOL = 1e-6


@dataclasses.dataclass
class _Sticky:
    """The comparison of one program's outputs in one suite, in their order.

    A tolerance that an output made of floats has switched on stays on for the cases after it, as in EvalPlus.
    """

    oracle: str
    atol: float

    def holds(self, inputs: Sequence[Any], output: Any, expected: Any) -> bool:
        right = ORACLES[self.oracle](inputs, output, expected, self.atol)
        if not self.atol and is_floats(expected):
            self.atol = ATOL
        # A root is right or wrong by itself.
        if right or not self.atol or self.oracle == "root":
            return right
        return type(output) is type(expected) and _all_close(output, expected, self.atol)


def comparator(oracle: str, atol: float) -> Comparator:
    """Returns what holds the outputs of one program against the reference's; it must not be used for another one."""
    return Comparator(name="evalplus", holds=_Sticky(oracle, atol).holds, takes_opaque=oracle == "not_none")


def is_floats(value: Any) -> bool:
    """Says whether a value is made of floats, so that EvalPlus compares it and those after it as such."""
    if isinstance(value, list | tuple):
        return bool(value) and all(isinstance(item, float) for item in value)
    return isinstance(value, float)


def _all_close(output: Any, expected: Any, atol: float) -> bool:
    """Says what `numpy.allclose` says of numbers and of lists of them."""
    if isinstance(expected, list | tuple):
        if not isinstance(output, list | tuple) or len(output) != len(expected):
            return False
        return all(_all_close(one, other, atol) for one, other in zip(output, expected, strict=True))
    return isinstance(expected, int | float) and is_close(output, expected, atol=atol)


def _polynomial(coefficients: Sequence[float], x: float) -> float:
    return sum(coefficient * math.pow(x, power) for power, coefficient in enumerate(coefficients))


def _surface_area(base_edge: float, height: float) -> int:
    slant = math.sqrt((base_edge / 2) ** 2 + height**2)
    return round(base_edge**2 + 2 * base_edge * slant)


def _digit_distance(one: int, other: int) -> int:
    texts = str(one), str(other)
    width = max(map(len, texts))
    return sum(abs(int(a) - int(b)) for a, b in zip(*(text.zfill(width) for text in texts), strict=True))


# Name -> whether an output is right, given the arguments, what is expected, and the tolerance (EvalPlus 0.3.1,
# `_special_oracle.py`).
ORACLES: dict[str, Callable[[Sequence[Any], Any, Any, float], bool]] = {
    "": lambda inputs, out, want, atol: out == want,
    "anything": lambda inputs, out, want, atol: True,
    "or_zero": lambda inputs, out, want, atol: out == want or out == 0,
    "surface_area": lambda inputs, out, want, atol: out == want or abs(out - _surface_area(*inputs)) <= atol,
    "digit_distance": lambda inputs, out, want, atol: out == want or out == _digit_distance(*inputs),
    "set": lambda inputs, out, want, atol: named("set_equal").holds(inputs, out, want),
    "not_none": lambda inputs, out, want, atol: named("not_none").holds(inputs, out, want),
    "root": lambda inputs, out, want, atol: abs(_polynomial(inputs[0], out)) <= atol,
}
