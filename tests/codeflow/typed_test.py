"""Values that leave a sandbox: types are kept apart, lies are not asked, and no text can harm its reader."""

import collections
import enum
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iterpref_jax.codeflow.sandbox import typed

MUCH = 1 << 20


def sent(value, most_chars=MUCH):
    return typed.from_json(typed.to_json(value, most_chars))


LEAVES = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.binary()),
    st.complex_numbers(allow_nan=False),
)
KEYS = st.recursive(
    LEAVES, lambda keys: st.one_of(st.tuples(keys, keys), st.frozensets(keys, max_size=3)), max_leaves=4
)
VALUES = st.recursive(
    LEAVES,
    lambda values: st.one_of(
        st.lists(values, max_size=4), st.tuples(values), st.dictionaries(KEYS, values, max_size=3), st.sets(KEYS)
    ),
    max_leaves=12,
)


def same(one, other):
    """Equal, and of equal types all the way down."""
    if type(one) is not type(other) or one != other:
        return False
    if isinstance(one, list | tuple):
        return all(map(same, one, other))
    if isinstance(one, dict):
        return all(same(value, other[key]) for key, value in one.items())
    return repr(one) == repr(other) or isinstance(one, set | frozenset)


@given(VALUES)
def test_a_value_comes_back_with_its_types(value):
    back, opaque = sent(value)
    assert same(back, value)
    assert not opaque


@pytest.mark.parametrize("value", [1, 1.0, True, "1", b"1", bytearray(b"1"), 1 + 0j, [1], (1,), {1}, frozenset({1})])
def test_types_that_compare_equal_are_kept_apart(value):
    assert type(sent(value)[0]) is type(value)


def test_floats_that_are_no_numbers_and_minus_zero_come_back():
    back, _ = sent([math.nan, math.inf, -math.inf, -0.0, complex(math.nan, -math.inf)])
    assert repr(back) == "[nan, inf, -inf, -0.0, (nan-infj)]"


def test_an_int_of_more_digits_than_python_writes_comes_back():
    assert sent(-(7**20_000))[0] == -(7**20_000)


def test_text_that_is_no_unicode_comes_back():
    assert sent("\ud800\0\n\t\\")[0] == "\ud800\0\n\t\\"


class Text(str):
    __slots__ = ()

    def __eq__(self, other):
        return True

    def __str__(self):
        return "a lie"

    __hash__ = str.__hash__


class Pairs(dict):
    def items(self):
        return [("a", "lie")]

    def __iter__(self):
        while True:
            yield "never ends"


class Colour(enum.IntEnum):
    RED = 3


Point = collections.namedtuple("Point", "x y")


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (Text("true"), "true"),
        (Pairs(b=1), {"b": 1}),
        (collections.Counter("aab"), {"a": 2, "b": 1}),
        (collections.OrderedDict(z=1), {"z": 1}),
        (Colour.RED, 3),
        (Point(1, 2), (1, 2)),
        (np.float64(0.5), 0.5),
        (np.int64(7), 7),
        (np.bool_(True), True),
    ],
)
def test_a_subclass_is_sent_as_its_base_holds_it(value, plain):
    back, opaque = sent(value)
    assert same(back, plain)
    assert not opaque


class Liar:
    __class__ = list

    def __iter__(self):
        return iter([1])

    def __reduce__(self):
        return list, ([1],)

    def __eq__(self, other):
        return True


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Liar(), "Liar"),
        ((n for n in iter(int, 1)), "generator"),
        (iter([]), "list_iterator"),
        (np.zeros(2), "numpy.ndarray"),
        (object, "type"),
        ([{1: range(3)}], "range"),
    ],
)
def test_what_has_no_form_is_opaque_and_named(value, name):
    back, opaque = sent(value)
    assert [found.rpartition(".")[2] if "test" in found else found for found in opaque] == [name]
    assert back != [1]


def test_a_value_within_itself_and_one_of_endless_branches_are_refused():
    ring = []
    ring.append(ring)
    with pytest.raises(ValueError, match="in one another"):
        typed.to_json(ring, MUCH)
    branches = []
    for _ in range(60):
        branches = [branches, branches]
    with pytest.raises(typed.TooLarge):
        typed.to_json(branches, MUCH)


@pytest.mark.parametrize(
    "value", ["x" * 2000, b"x" * 2000, 1 << 20_000, list(range(1000)), dict.fromkeys(range(500))], ids=type
)
def test_a_value_above_its_limit_is_refused(value):
    with pytest.raises(typed.TooLarge):
        typed.to_json(value, 1000)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[",
        "{}",
        '{"tuple":1}',
        '{"tuple":[],"set":[]}',
        '{"object":[]}',
        '{"set":[[]]}',
        '{"dict":[[1]]}',
        '{"dict":[[[],1]]}',
        '{"int":1}',
        '{"float":"1_0"}',
        '{"complex":"1"}',
        '{"bytes":"xyz"}',
        "[" * 200 + "]" * 200,
        "[" * 100_000,
        "9" * 5000,
    ],
)
def test_a_text_that_nobody_here_writes_is_a_value_error(text):
    with pytest.raises(ValueError):
        typed.from_json(text)


@pytest.mark.parametrize("name", ["set", "frozenset", "dict"])
def test_keys_that_share_a_hash_are_refused_before_they_cost_time(name):
    keys = [(2**61 - 1) * n for n in range(20_000)]
    keys = [{"int": hex(key)} for key in keys]
    with pytest.raises(ValueError, match="share a hash"):
        typed.from_json(json.dumps({name: [[key, 0] for key in keys] if name == "dict" else keys}))
