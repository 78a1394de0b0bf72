"""Branches as columns: every prefix is one column, seen by exactly those that continue it."""

import hypothesis
import numpy as np
from hypothesis import strategies as st

from iterpref_jax.data.trie import preorder

# Two letters make equal branches, and branches that begin others, frequent.
BRANCHES = st.lists(st.lists(st.integers(0, 1), max_size=6), min_size=1, max_size=7)


def made(branches, share=True):
    columns, paths = preorder([np.array(branch, np.int32) for branch in branches], share=share)
    return columns, [path.tolist() for path in paths]


def test_a_tree_of_three_branches_is_what_one_draws_by_hand():
    columns, paths = made([[1, 2, 3, 4], [1, 7], [1, 2, 3, 5], [1, 2, 3, 5, 6]])
    # 1 2 3 4, then what hangs on it, the deepest first: 5 (and 6 on it) behind 3, then 7 behind 1.
    assert columns.tokens.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert columns.depth.tolist() == [0, 1, 2, 3, 3, 4, 1]
    assert columns.visible_until.tolist() == [7, 6, 6, 4, 6, 6, 7]
    assert paths == [[0, 1, 2, 3], [0, 6], [0, 1, 2, 4], [0, 1, 2, 4, 5]]


def test_of_equally_deep_branches_the_earlier_comes_first():
    assert made([[1, 2], [1, 5], [1, 3], [1, 4]])[0].tokens.tolist() == [1, 2, 5, 3, 4]


@hypothesis.given(BRANCHES)
def test_columns_are_the_distinct_prefixes(branches):
    columns, paths = made(branches)
    prefixes = {tuple(branch[: end + 1]) for branch in branches for end in range(len(branch))}
    column_of = {
        tuple(branch[: end + 1]): path[end]
        for branch, path in zip(branches, paths, strict=True)
        for end in range(len(branch))
    }
    assert sorted(column_of.values()) == list(range(len(prefixes))) == list(range(len(columns.tokens)))
    for prefix, column in column_of.items():
        assert (columns.tokens[column], columns.depth[column]) == (prefix[-1], len(prefix) - 1)
        seen = {j for j in range(column + 1) if column < columns.visible_until[j]}
        assert seen == {column_of[prefix[:end]] for end in range(1, len(prefix) + 1)}


@hypothesis.given(BRANCHES)
def test_without_sharing_branches_lie_side_by_side(branches):
    columns, paths = made(branches, share=False)
    assert columns.tokens.tolist() == [token for branch in branches for token in branch]
    assert [column for path in paths for column in path] == list(range(len(columns.tokens)))
    for path in paths:
        assert all(columns.visible_until[column] == path[-1] + 1 for column in path)
