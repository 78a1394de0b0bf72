"""Attention over packed trees: causal by column, cut off where a key's subtree ends.

Letters: R row, T token, N query heads, K key/value heads, H head dim, Q query heads a key/value head (N = K * Q).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from iterpref_jax.errors import UserError, did_you_mean
from iterpref_jax.ops.kept import ATTENTION
from iterpref_jax.ops.tree_attention_cpu import tree_attention_cpu
from iterpref_jax.ops.tree_blocks import MASKED, visible

IMPLEMENTATIONS = ("xla", "cpu", "tpu", "gpu")
# The best implementation by the platform of a device (a GPU that is only compiled for calls itself cuda); else "xla".
_BEST = {"cpu": "cpu", "tpu": "tpu", "gpu": "gpu", "cuda": "gpu"}

# Queries are taken in at most this many blocks, none shorter than MIN_BLOCK: enough to skip most of the masked upper
# triangle and to keep scores small, few enough to compile fast.
MAX_BLOCKS = 8
MIN_BLOCK = 128


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
    platform: str | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Returns attention outputs [R, T, N, H] in the query's dtype; scores and softmax are float32.

    Outputs of padding queries are finite and otherwise unspecified.

    Args:
        visible_until_RT: int32, one past the last column that sees this key; 0 in padding.
        depth_RT: int32, position of the token in its own branch; only a `window` reads it.
        window: a query sees keys less than this many positions back in its branch; None sees all.
        implementation: one of `IMPLEMENTATIONS`; None picks the best that the platform has.
        platform: of the devices that this is compiled for; None is JAX's default. A kernel knows one device only: over
            a mesh, call it in `shard_map`.
        interpret: run a kernel's program on whatever platform there is, slowly.

    Raises:
        UserError: an implementation that does not exist, or not on this platform.
    """
    arrays = query_RTNH, key_RTKH, value_RTKH, visible_until_RT, depth_RT
    chosen = choose(implementation, platform or jax.default_backend(), interpret=interpret)
    if chosen == "xla":
        return _xla(*arrays, scale, window)
    if chosen == "cpu":
        return tree_attention_cpu(*arrays, scale=scale, window=window)
    return _pallas_kernel(chosen)(*arrays, scale=scale, window=window, interpret=interpret)


def _pallas_kernel(implementation: str) -> Callable[..., jax.Array]:
    # Pallas takes long to import, and most runs need one kernel or none.
    if implementation == "tpu":
        from iterpref_jax.ops.tree_attention_tpu import tree_attention_tpu

        return tree_attention_tpu
    from iterpref_jax.ops.tree_attention_gpu import tree_attention_gpu

    return tree_attention_gpu


def choose(implementation: str | None, platform: str, *, interpret: bool = False) -> str:
    """Returns the implementation to run on a platform; None asks for the best.

    Raises:
        UserError: an implementation that does not exist, or not on this platform.
    """
    if implementation not in (None, *IMPLEMENTATIONS):
        hint = did_you_mean(implementation, IMPLEMENTATIONS)
        raise UserError(f"attention implementation must be one of {IMPLEMENTATIONS}, not {implementation!r}{hint}")
    best = _BEST.get(platform, "xla")
    if implementation not in (None, "xla", best) and not interpret:
        raise UserError(
            f"attention implementation {implementation!r} does not run on platform {platform!r}; take 'xla', or leave "
            "the choice to us (model.compute.attention=auto)"
        )
    return implementation or best


def query_blocks(tokens: int) -> list[tuple[int, int]]:
    """Returns (start, stop) of the XLA form's blocks: queries start:stop are scored against the keys 0:stop."""
    size = max(MIN_BLOCK, -(-tokens // MAX_BLOCKS))
    return [(start, min(start + size, tokens)) for start in range(0, tokens, size)]


def _xla(query_RTNH, key_RTKH, value_RTKH, visible_until_RT, depth_RT, scale: float, window: int | None) -> jax.Array:
    """Dense scores of one block of queries at a time, computed again in the backward pass."""
    rows, tokens, heads, head_dim = query_RTNH.shape
    kv_heads = key_RTKH.shape[2]
    query_RTKQH = query_RTNH.reshape(rows, tokens, kv_heads, heads // kv_heads, head_dim)

    @functools.partial(jax.checkpoint, static_argnums=(3, 4))
    def block(query, key, value, start: int, stop: int) -> jax.Array:
        scores = jnp.einsum("rtkqh,rskh->rkqts", query, key, preferred_element_type=jnp.float32) * scale
        mask = visible(visible_until_RT, depth_RT, window, start=start, stop=stop)[:, None, None]
        weights = jax.nn.softmax(jnp.where(mask, scores, MASKED), axis=-1).astype(value.dtype)
        return jnp.einsum("rkqts,rskh->rtkqh", weights, value, preferred_element_type=jnp.float32)

    blocks = query_blocks(tokens)
    out = [block(query_RTKQH[:, a:b], key_RTKH[:, :b], value_RTKH[:, :b], a, b) for a, b in blocks]
    attended = jnp.concatenate(out, axis=1).reshape(rows, tokens, heads, head_dim).astype(query_RTNH.dtype)
    return checkpoint_name(attended, ATTENTION)
