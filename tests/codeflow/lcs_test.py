from __future__ import annotations

import itertools
import time
import tracemalloc

import hypothesis
import hypothesis.strategies as st
import pytest

from iterpref_jax.codeflow import lcs

few = st.text(alphabet="abc", max_size=9)


def length_by_table(a, b):
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, j in itertools.product(range(len(a)), range(len(b))):
        same = a[i] == b[j]
        table[i + 1][j + 1] = table[i][j] + 1 if same else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


def all_matchings(a, b):
    """Every set of index pairs that rise in both and match."""
    places = [(i, j) for i, j in itertools.product(range(len(a)), range(len(b))) if a[i] == b[j]]
    for count in range(min(len(a), len(b)) + 1):
        for chosen in itertools.combinations(places, count):
            if all(x[0] < y[0] and x[1] < y[1] for x, y in itertools.pairwise(chosen)):
                yield chosen


@hypothesis.given(st.text(alphabet="abc", max_size=40), st.text(alphabet="abc", max_size=40))
def test_matches_are_a_common_subsequence_of_the_greatest_length(a, b):
    pairs = lcs.matches(a, b)
    assert all(a[i] == b[j] for i, j in pairs)
    assert all(x[0] < y[0] and x[1] < y[1] for x, y in itertools.pairwise(pairs))
    assert len(pairs) == length_by_table(a, b)


@hypothesis.given(st.text(alphabet="ab", max_size=5), st.text(alphabet="ab", max_size=5))
def test_of_all_longest_ones_each_pair_from_the_last_is_earliest(a, b):
    matchings = list(all_matchings(a, b))
    longest = max(map(len, matchings))
    expected = min((m for m in matchings if len(m) == longest), key=lambda m: list(reversed(m)))
    assert lcs.matches(a, b) == list(expected)


@hypothesis.given(few, few, few)
def test_a_common_beginning_is_matched_to_itself(head, a, b):
    assert lcs.matches(head + a, head + b)[: len(head)] == [(i, i) for i in range(len(head))]


@hypothesis.given(st.text(alphabet="abc", max_size=40), st.text(alphabet="abc", max_size=40))
def test_rows_that_are_made_anew_give_the_same_matches(a, b):
    expected = lcs.matches(a, b)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lcs, "ROWS", 1)
        assert lcs.matches(a, b) == expected


def test_long_sequences_take_far_less_memory_than_their_product():
    a, b = ([(n * factor) % 251 for n in range(12_000)] for factor in (7, 11))
    tracemalloc.start()
    assert lcs.matches(a, b)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12_000 * 12_000 / 8 / 4


def test_of_repeated_items_the_later_ones_stay_over():
    assert lcs.matches("xx", "x") == [(0, 0)]
    assert lcs.matches("yxx", "x") == [(1, 0)]


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (range(2000), range(2000, 4000)),
        ([i % 2 for i in range(2000)], [1 - i % 2 for i in range(2000)]),
        ([i if i % 3 == 0 else 0 for i in range(2000)], [-i if i % 5 == 0 else 0 for i in range(2000)]),
        ([0] * 2000, [0] * 2000),
    ],
    ids=["all different", "two alternating lines", "mostly blank lines", "all equal"],
)
def test_two_programs_of_2000_lines_take_well_under_half_a_second(a, b):
    began = time.process_time()
    lcs.matches(a, b)
    assert time.process_time() - began < 0.25
