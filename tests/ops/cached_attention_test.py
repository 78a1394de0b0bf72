"""Attention over a cache, block by block, against one softmax over all that a slot sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iterpref_jax.ops.cached_attention import BLOCK, cached_attention

# Less than a block, whole blocks, and one that the last block reaches back for.
COLUMNS = (BLOCK - 28, 2 * BLOCK, 2 * BLOCK + 44)


def by_hand(query_BNH, key_BSKH, value_BSKH, position_B, scale, window):
    out = np.zeros_like(query_BNH, np.float64)
    for slot, position in enumerate(position_B):
        first = 0 if window is None else max(0, position - window + 1)
        for head in range(query_BNH.shape[1]):
            shared = head // (query_BNH.shape[1] // key_BSKH.shape[2])
            keys, values = (x[slot, first : position + 1, shared].astype(np.float64) for x in (key_BSKH, value_BSKH))
            scores = keys @ query_BNH[slot, head].astype(np.float64) * scale
            weights = np.exp(scores - scores.max())
            out[slot, head] = weights / weights.sum() @ values
    return out


@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("window", [None, 1, 7, BLOCK + 2])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2)])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_every_slot_gets_the_softmax_over_what_it_sees(columns, window, heads, kv_heads, dtype, tolerance):
    rng = np.random.default_rng(columns + heads)
    position_B = np.array([0, BLOCK - 29, columns // 2, columns - 2, columns - 1])
    # Large scores, so that the running maximum moves from block to block.
    query = jnp.asarray(3 * rng.normal(size=(len(position_B), heads, 16)), dtype)
    key, value = (jnp.asarray(rng.normal(size=(len(position_B), columns, kv_heads, 16)), dtype) for _ in range(2))
    attend = jax.jit(cached_attention, static_argnames=("scale", "window"))
    found = attend(query, key, value, jnp.asarray(position_B), scale=0.5, window=window)
    assert found.dtype == dtype
    arrays = [np.asarray(x, np.float32) for x in (query, key, value)]
    np.testing.assert_allclose(
        np.asarray(found, np.float32), by_hand(*arrays, position_B, 0.5, window), rtol=tolerance, atol=tolerance
    )


def test_a_slot_does_not_depend_on_how_far_the_others_are():
    rng = np.random.default_rng(0)
    query, key, value = (
        jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((2, 4, 8), (2, 300, 2, 8), (2, 300, 2, 8))
    )
    near, far = (cached_attention(query, key, value, jnp.array([5, other]), scale=1.0)[0] for other in (6, 299))
    np.testing.assert_array_equal(near, far)
