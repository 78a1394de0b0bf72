"""Attention over packed trees: causal by column, cut off where a key's subtree ends.

Letters: R row, T token, N query heads, K key/value heads, H head dim, Q query heads a key/value head (N = K * Q).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from iterpref_jax.errors import UserError, did_you_mean

IMPLEMENTATIONS = ("xla",)

# Finite, so that a padding query, which sees no key, gets a finite (and unused) output and no NaN gradient.
MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)


def visible(visible_until_RT: jax.Array, depth_RT: jax.Array, window: int | None) -> jax.Array:
    """Returns the mask [R, query T, key T]: j <= i < visible_until[j], and depth[i] - depth[j] < window if there is one.

    A window counts positions in the token's own branch (depth), not columns: FlashMask's column form of a tree.
    """
    columns = jnp.arange(visible_until_RT.shape[1])
    query, key = columns[None, :, None], columns[None, None, :]
    mask = (key <= query) & (query < visible_until_RT[:, None, :])
    if window is not None:
        mask &= depth_RT[:, :, None] - depth_RT[:, None, :] < window
    return mask


def tree_attention(
    query_RTNH: jax.Array,
    key_RTKH: jax.Array,
    value_RTKH: jax.Array,
    visible_until_RT: jax.Array,
    depth_RT: jax.Array,
    *,
    scale: float,
    window: int | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """Returns attention outputs [R, T, N, H] in the query's dtype; scores and softmax are float32.

    Args:
        visible_until_RT: int32, one past the last column that sees this key; 0 in padding.
        depth_RT: int32, position of the token in its own branch; only a `window` reads it.
        window: a query sees keys less than this many positions back in its branch; None sees all.
        implementation: one of `IMPLEMENTATIONS`; None picks the best that the platform has.

    Raises:
        UserError: an implementation that does not exist.
    """
    if implementation not in (None, *IMPLEMENTATIONS):
        hint = did_you_mean(implementation, IMPLEMENTATIONS)
        raise UserError(f"attention implementation must be one of {IMPLEMENTATIONS}, not {implementation!r}{hint}")
    rows, tokens, heads, head_dim = query_RTNH.shape
    kv_heads = key_RTKH.shape[2]
    query_RTKQH = query_RTNH.reshape(rows, tokens, kv_heads, heads // kv_heads, head_dim)
    scores = jnp.einsum("rtkqh,rskh->rkqts", query_RTKQH, key_RTKH, preferred_element_type=jnp.float32) * scale
    mask = visible(visible_until_RT, depth_RT, window)[:, None, None]
    weights = jax.nn.softmax(jnp.where(mask, scores, MASKED), axis=-1).astype(value_RTKH.dtype)
    out = jnp.einsum("rkqts,rskh->rtkqh", weights, value_RTKH, preferred_element_type=jnp.float32)
    return out.reshape(rows, tokens, heads, head_dim).astype(query_RTNH.dtype)
