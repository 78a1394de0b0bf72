"""Attention of one new token a slot over a cache of keys and values.

Letters: B slot, S cache column, N query heads, K key/value heads, H head dim, Q query heads a key/value head, s block.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from iterpref_jax.ops.tree_blocks import MASKED

BLOCK = 128


def cached_attention(
    query_BNH: jax.Array,
    key_BSKH: jax.Array,
    value_BSKH: jax.Array,
    position_B: jax.Array,
    *,
    scale: float,
    window: int | None = None,
) -> jax.Array:
    """Returns attention outputs [B, N, H] over the columns up to and with `position_B`, in the query's dtype.

    Columns are read in blocks, from the first to the last that any slot sees, by one running softmax (float32). A block
    that a slot does not see adds exact zeros to it, so its result does not depend on how far the others are.
    """
    slots, columns, kv_heads, head_dim = key_BSKH.shape
    query = query_BNH.reshape(slots, kv_heads, -1, head_dim)
    block = min(BLOCK, columns)
    first = 0 if window is None else jnp.maximum(position_B.min() - window + 1, 0) // block

    def add(number: jax.Array, carry: tuple) -> tuple:
        best, total, out = carry
        # The last block may reach back over columns that the one before has counted.
        start = jnp.minimum(number * block, columns - block)
        key, value = (jax.lax.dynamic_slice_in_dim(x, start, block, axis=1) for x in (key_BSKH, value_BSKH))
        scores = jnp.einsum("bkqh,bskh->bkqs", query, key, preferred_element_type=jnp.float32) * scale
        column = start + jnp.arange(block)
        mask = (column <= position_B[:, None]) & (column >= number * block)
        if window is not None:
            mask &= position_B[:, None] - column < window
        mask = mask[:, None, None, :]
        new_best = jnp.maximum(best, jnp.where(mask, scores, MASKED).max(-1))
        weights = jnp.where(mask, jnp.exp(scores - new_best[..., None]), 0)
        shrink = jnp.exp(best - new_best)
        mixed = jnp.einsum("bkqs,bskh->bkqh", weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
        return new_best, total * shrink + weights.sum(-1), out * shrink[..., None] + mixed

    heads = (slots, kv_heads, query.shape[2])
    start = jnp.full(heads, MASKED, jnp.float32), jnp.zeros(heads), jnp.zeros((*heads, head_dim))
    _, total, out = jax.lax.fori_loop(first, position_B.max() // block + 1, add, start)
    return (out / total[..., None]).reshape(query_BNH.shape).astype(query_BNH.dtype)
