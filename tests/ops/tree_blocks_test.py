"""Block tables against the dense mask: nothing that is seen is skipped, nothing that is masked is called full."""

import jax
import numpy as np
import pytest

from iterpref_jax.ops.tree_blocks import tree_blocks
from tests.support.forests import dense_mask, random_forest

SIZES = [(16, 16), (8, 32), (48, 12)]


def random_rows(seed, tokens=96):
    """Branching, nearly one chain, many trees, mostly padding, empty."""
    rng = np.random.default_rng(seed)
    kinds = [dict(), dict(branching=0.02, trees=0.01), dict(trees=0.3), dict(branching=0.05, padding=90)]
    forests = [random_forest(rng, tokens, **({"padding": 30} | kind)) for kind in kinds]
    until, depth = (np.stack([forest[i] for forest in forests]) for i in (0, 1))
    return np.concatenate([until, until[:1] * 0]), np.concatenate([depth, depth[:1] * 0])


def listed(visits, others):
    """The pairs of blocks in a table, and those of them called full: two boolean arrays [R, block, other]."""
    count, other, full = map(np.asarray, visits)
    some, all_ = np.zeros((2, *count.shape, others), bool)
    for row, block in np.ndindex(*count.shape):
        used = other[row, block, : count[row, block]]
        some[row, block, used] = True
        all_[row, block, used] = full[row, block, : count[row, block]]
    return some, all_


def blockwise(mask_RQK, sizes):
    rows, queries, keys = mask_RQK.shape
    return mask_RQK.reshape(rows, queries // sizes[0], sizes[0], keys // sizes[1], sizes[1])


def might_see(until, depth, window, query_block):
    """What the tables promise with a window: a query counts as deep as the least deep token of its block."""
    rows, tokens = depth.shape
    least = np.repeat(depth.reshape(rows, -1, query_block).min(axis=2), query_block, axis=1)
    block = np.arange(tokens) // query_block
    own_block = block[:, None] == block
    return dense_mask(until, depth, None) & (own_block | (least[:, :, None] - depth[:, None, :] < window))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("window", [None, 1, 5, 20])
def test_no_visible_block_is_missing_and_no_masked_one_is_full(window, sizes):
    make = jax.jit(lambda *row: tree_blocks(*row, window, query_block=sizes[0], key_block=sizes[1]))
    for seed in range(6):
        until, depth = random_rows(seed)
        mask = dense_mask(until, depth, window)
        listed_mask = mask if window is None else might_see(until, depth, window, sizes[0])
        assert not (mask & ~listed_mask).any()
        some, all_ = blockwise(listed_mask, sizes).any((2, 4)), blockwise(mask, sizes).all((2, 4))
        tables = make(until, depth)
        found = listed(tables.keys_RIJ, some.shape[2]), listed(tables.queries_RJI, some.shape[1])
        for direction, flip in zip(found, (False, True), strict=True):
            for table, expected in zip(direction, (some, all_), strict=True):
                np.testing.assert_array_equal(table, expected.swapaxes(1, 2) if flip else expected)


def test_blocks_come_in_order_and_what_follows_repeats_the_last():
    until, depth = random_rows(0)
    for visits in tree_blocks(until, depth, None, query_block=8, key_block=8):
        count, other, full = map(np.asarray, visits)
        for row, block in np.ndindex(*count.shape):
            used = max(int(count[row, block]), 1)
            assert (np.diff(other[row, block, :used]) > 0).all()
            assert (other[row, block, used:] == other[row, block, used - 1]).all()
