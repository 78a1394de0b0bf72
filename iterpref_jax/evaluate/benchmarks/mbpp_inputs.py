"""The types that MBPP+'s inputs lost when they became JSON: which lists are tuples, sets or numbers.

The numbers of the tasks are those of EvalPlus 0.3.1 (`mbpp_deserialize_inputs`, Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Args = list[Any]


def _tuples(args: Args) -> Args:
    return [tuple(arg) for arg in args]


def _lists_of_tuples(args: Args) -> Args:
    return [[tuple(item) for item in arg] for arg in args]


def _first_of_tuples(args: Args) -> Args:
    return [[tuple(item) for item in args[0]], args[1]]


def _first_tuple(args: Args) -> Args:
    return [tuple(args[0]), *args[1:]]


def _second_tuple(args: Args) -> Args:
    return [args[0], tuple(args[1])]


def _sets(args: Args) -> Args:
    # An empty one comes back as a dict, as in EvalPlus.
    return [[set(item) if isinstance(item, list) and item else {} for item in args[0]]]


def _number_and_complex(args: Args) -> Args:
    return [float(args[0]), complex(args[1])]


def _complex(args: Args) -> Args:
    return [complex(args[0])]


def _tuples_of_tuples(args: Args) -> Args:
    return [tuple(tuple(item) for item in arg) for arg in args]


def _tuple_of_items(args: Args) -> Args:
    return [tuple(tuple(item) if isinstance(item, list) else item for item in args[0])]


def _values_tuples(args: Args) -> Args:
    return [{key: tuple(value) for key, value in args[0].items()}, *args[1:]]


def _all_tuples(args: Any) -> Any:
    return tuple(_all_tuples(item) for item in args) if isinstance(args, list) else args


_RULES: dict[Callable[[Args], Args], str] = {
    _tuples: "2 116 132 143 222 261 273 394 399 421 424 429 470 560 579 596 616 630 726 740 744 809",
    _lists_of_tuples: "63 64 70 94 120 237 272 299 400 409 417 438 473 614 780",
    _first_of_tuples: "75 413 444 753",
    _first_tuple: "250 307 405 446 617 720 763 808",
    _second_tuple: "106 750",
    _sets: "115",
    _number_and_complex: "124",
    _complex: "252",
    _tuples_of_tuples: "259 401 445",
    _tuple_of_items: "278",
    _values_tuples: "722",
    _all_tuples: "580 615 791",
}
_BY_NUMBER = {int(number): rule for rule, numbers in _RULES.items() for number in numbers.split()}


def restored(number: int, inputs: list[Args]) -> list[Args]:
    """Returns the inputs of task Mbpp/`number` with their types."""
    rule = _BY_NUMBER.get(number)
    return inputs if rule is None else [rule(args) for args in inputs]
