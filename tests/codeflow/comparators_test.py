"""Comparators of outputs, by the rules of the benchmarks that they are named after."""

import decimal
import math

import pytest

from iterpref_jax.codeflow.sandbox import comparators
from iterpref_jax.codeflow.sandbox.typed import Opaque
from iterpref_jax.errors import UserError


def holds(name, output, expected):
    return comparators.named(name).holds((), output, expected)


@pytest.mark.parametrize(
    ("name", "output", "expected", "is_right"),
    [
        ("exact", [1, (2, 3)], [1, (2, 3)], True),
        ("exact", 1.0, 1, True),
        ("exact", (1,), [1], False),
        ("exact", 0.1 + 0.2, 0.3, False),
        ("exact", math.nan, math.nan, False),
        ("floats", 0.1 + 0.2, 0.3, True),
        ("floats", 1.0000011, 1.0, True),
        ("floats", 1.0000013, 1.0, False),
        ("floats", 1e-6, 0.0, True),
        ("floats", [0.1 + 0.2, 1.0], [0.3, 1.0], True),
        ("floats", (0.1 + 0.2,), [0.3], False),
        ("floats", [0.3], [0.3, 1.0], False),
        ("floats", 1, 1.0000001, False),
        ("floats", [1, 0.3], [1.0, 0.30000001], True),
        ("floats", ["x"], [0.3], False),
        ("floats", [10**400], [1e300], False),
        ("floats", math.inf, math.inf, True),
        ("floats", 1.0, math.inf, False),
        ("floats", [0.1 + 0.2, "x"], [0.3, "x"], False),
        ("tuple_as_list", (1, 2), [1, 2], True),
        ("tuple_as_list", [(1, 2)], [[1, 2]], False),
        ("set_equal", [3, 1, 1], (1, 3), True),
        ("set_equal", [3, 1], (1, 4), False),
        ("not_none", Opaque("re.Match"), True, True),
        ("not_none", None, True, False),
        ("not_none", None, False, True),
        ("not_none", False, False, True),
        ("not_none", False, True, False),
        ("lines", "1 2 \n3\n\n", "\n1 2\n3", True),
        ("lines", "1.0 2e0", "1 2.000", True),
        ("lines", "1.0000000001", "1", False),
        ("lines", "1  2", "1 2", True),
        ("lines", "a  b", "a b", False),
        ("lines", "1\n\n2", "1\n2", False),
        ("lines", "50000000000000001", "50000000000000000", False),
        ("lines", "sNaN", "1", False),
        ("lines", "1e999999999999999999", "1", False),
        ("lines", "", "", True),
        ("lines", "True", "1", False),
    ],
)
def test_an_output_is_held_against_what_is_expected(name, output, expected, is_right):
    assert holds(name, output, expected) is is_right


def test_decimals_are_not_those_of_the_callers_context():
    with decimal.localcontext() as context:
        context.prec = 2
        assert not holds("lines", "1.234", "1.235")


def test_keys_that_share_a_hash_do_not_cost_time_in_a_set():
    with pytest.raises(ValueError, match="share a hash"):
        holds("set_equal", [(2**61 - 1) * n for n in range(20_000)], [1])


def test_an_unknown_comparator_is_refused_by_name():
    with pytest.raises(UserError, match="did you mean 'floats'"):
        comparators.named("float")
