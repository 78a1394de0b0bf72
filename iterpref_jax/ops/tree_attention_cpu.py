"""Tree attention on a CPU: tiles that stay in a core's cache, and no work for tiles that no query sees.

XLA's CPU compiler runs a loop of small products at full speed as long as what lies between two of them fits the cache,
so this is flash attention written in plain `jax.lax`: one row after the other, a running softmax over the visible key
blocks of each query block (`ops.tree_blocks`), and a backward pass that makes the scores of a tile again.

Letters: R row, T token, N query heads, K key/value heads, H head dim, Q query heads a key/value head (N = K * Q),
i query block, j key block, t query of a block, s key of a block.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.lax import dynamic_slice_in_dim as cut
from jax.lax import dynamic_update_slice_in_dim as paste

from iterpref_jax.ops.kept import ATTENTION
from iterpref_jax.ops.tree_blocks import MASKED, in_whole_blocks, tree_blocks

# Tokens of a query block and of a key block: measured, see EXPERIMENTS.md.
BLOCK = 128

_product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def tree_attention_cpu(
    query_RTNH: jax.Array,
    key_RTKH: jax.Array,
    value_RTKH: jax.Array,
    visible_until_RT: jax.Array,
    depth_RT: jax.Array,
    *,
    scale: float,
    window: int | None = None,
) -> jax.Array:
    """Returns attention outputs [R, T, N, H] as `tree_attention` does; those of padding queries are zeros."""
    tokens = query_RTNH.shape[1]
    arrays = query_RTNH, key_RTKH, value_RTKH, visible_until_RT, depth_RT
    out: jax.Array = _attention(scale, window, *(in_whole_blocks(x, BLOCK) for x in arrays))
    return out[:, :tokens]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attention(scale: float, window: int | None, query, key, value, until_RT, depth_RT) -> jax.Array:
    return _forward(scale, window, query, key, value, until_RT, depth_RT)[0]


def _forward(scale: float, window: int | None, query, key, value, until_RT, depth_RT):
    """Returns the outputs, and the inputs with outputs and log-sum-exps [R, K, Q, T] for the backward pass."""

    def of_row(arrays: tuple) -> tuple[jax.Array, jax.Array]:
        return _forward_row(_Row(scale, window, *arrays[:4]), *arrays[4:])

    visits = tree_blocks(until_RT, depth_RT, window, query_block=BLOCK, key_block=BLOCK).keys_RIJ
    arrays = _by_head(query, key.shape[2]), key.swapaxes(1, 2), value.swapaxes(1, 2)
    out_RKQTH, lse_RKQT = jax.lax.map(of_row, (until_RT, depth_RT, visits.count, visits.other, *arrays))
    out, lse_RKQT = (checkpoint_name(x, ATTENTION) for x in (_by_token(out_RKQTH), lse_RKQT))
    return out, (query, key, value, until_RT, depth_RT, out, lse_RKQT)


def _backward(scale: float, window: int | None, residuals: tuple, grad: jax.Array):
    query, key, value, until_RT, depth_RT, out, lse_RKQT = residuals

    def of_row(arrays: tuple) -> tuple[jax.Array, ...]:
        return _backward_row(_Row(scale, window, *arrays[:4]), *arrays[4:])

    visits = tree_blocks(until_RT, depth_RT, window, query_block=BLOCK, key_block=BLOCK).keys_RIJ
    query_RKQTH, out_RKQTH, grad_RKQTH = (_by_head(x, key.shape[2]) for x in (query, out, grad))
    overlap_RKQT = _product("rkqth,rkqth->rkqt", out_RKQTH, grad_RKQTH)
    keys = (x.swapaxes(1, 2) for x in (key, value))
    arrays = until_RT, depth_RT, visits.count, visits.other, query_RKQTH, *keys, lse_RKQT, overlap_RKQT, grad_RKQTH
    to_query, to_key, to_value = jax.lax.map(of_row, arrays)
    to_keys = (x.swapaxes(1, 2).astype(key.dtype) for x in (to_key, to_value))
    return _by_token(to_query).astype(query.dtype), *to_keys, None, None


_attention.defvjp(_forward, _backward)


@dataclasses.dataclass(frozen=True)
class _Row:
    """What one row's queries see: the scores of a tile with their mask, and the key blocks each query block visits."""

    scale: float
    window: int | None
    until_T: jax.Array
    depth_T: jax.Array
    count_I: jax.Array
    other_IJ: jax.Array

    def scores(self, query_KQtH: jax.Array, key_KsH: jax.Array) -> jax.Array:
        """Returns scaled scores [K, Q, t, s], float32."""
        return _product("kqth,ksh->kqts", query_KQtH, key_KsH) * self.scale

    def mask(self, i: jax.Array, j: jax.Array) -> jax.Array:
        """Returns the mask [t, s] of one tile."""
        query, key = i * BLOCK + jnp.arange(BLOCK)[:, None], j * BLOCK + jnp.arange(BLOCK)
        mask = (key <= query) & (query < cut(self.until_T, j * BLOCK, BLOCK))
        if self.window is not None:
            depth = cut(self.depth_T, i * BLOCK, BLOCK)[:, None] - cut(self.depth_T, j * BLOCK, BLOCK)
            mask &= depth < self.window
        return mask


def _forward_row(row: _Row, query_KQTH, key_KTH, value_KTH) -> tuple[jax.Array, jax.Array]:
    """Returns outputs [K, Q, T, H] and log-sum-exps [K, Q, T]."""
    heads = query_KQTH.shape[:2]

    def queries(i: jax.Array, done: tuple) -> tuple[jax.Array, jax.Array]:
        query = cut(query_KQTH, i * BLOCK, BLOCK, 2)

        def keys(visit: jax.Array, carry: tuple) -> tuple:
            best, total, mixed = carry
            j = row.other_IJ[i, visit]
            mask = row.mask(i, j)
            scores = jnp.where(mask, row.scores(query, cut(key_KTH, j * BLOCK, BLOCK, 1)), MASKED)
            new_best = jnp.maximum(best, scores.max(-1))
            shrink, odds = jnp.exp(best - new_best), jnp.where(mask, jnp.exp(scores - new_best[..., None]), 0)
            values = _product("kqts,ksh->kqth", odds.astype(value_KTH.dtype), cut(value_KTH, j * BLOCK, BLOCK, 1))
            return new_best, total * shrink + odds.sum(-1), mixed * shrink[..., None] + values

        zeros = jnp.zeros((*heads, BLOCK))
        start = zeros + MASKED, zeros, jnp.zeros((*heads, BLOCK, query.shape[-1]))
        best, total, mixed = jax.lax.fori_loop(0, row.count_I[i], keys, start)
        total = jnp.where(total == 0, 1, total)
        out, lse = (mixed / total[..., None]).astype(query.dtype), best + jnp.log(total)
        return paste(done[0], out, i * BLOCK, 2), paste(done[1], lse, i * BLOCK, 2)

    start = jnp.zeros_like(query_KQTH), jnp.zeros(query_KQTH.shape[:3], jnp.float32)
    return jax.lax.fori_loop(0, len(row.count_I), queries, start)


def _backward_row(row: _Row, query_KQTH, key_KTH, value_KTH, lse_KQT, overlap_KQT, grad_KQTH) -> tuple[jax.Array, ...]:
    """Returns the gradients of queries, keys and values, float32."""
    dtype = query_KQTH.dtype

    def queries(i: jax.Array, done: tuple) -> tuple:
        query, grad, lse, overlap = (cut(x, i * BLOCK, BLOCK, 2) for x in (query_KQTH, grad_KQTH, lse_KQT, overlap_KQT))

        def keys(visit: jax.Array, carry: tuple) -> tuple:
            to_query, to_key, to_value = carry
            j = row.other_IJ[i, visit]
            key, value = (cut(x, j * BLOCK, BLOCK, 1) for x in (key_KTH, value_KTH))
            weights = jnp.where(row.mask(i, j), jnp.exp(row.scores(query, key) - lse[..., None]), 0)
            to_weights = _product("kqth,ksh->kqts", grad, value) - overlap[..., None]
            to_scores = (weights * to_weights * row.scale).astype(dtype)
            to_key = _add(to_key, _product("kqts,kqth->ksh", to_scores, query), j)
            to_value = _add(to_value, _product("kqts,kqth->ksh", weights.astype(dtype), grad), j)
            return to_query + _product("kqts,ksh->kqth", to_scores, key), to_key, to_value

        start = jnp.zeros(query.shape, jnp.float32), *done[1:]
        to_query, to_key, to_value = jax.lax.fori_loop(0, row.count_I[i], keys, start)
        return paste(done[0], to_query, i * BLOCK, 2), to_key, to_value

    start = tuple(jnp.zeros(x.shape, jnp.float32) for x in (query_KQTH, key_KTH, value_KTH))
    return jax.lax.fori_loop(0, len(row.count_I), queries, start)


def _add(total_KTH: jax.Array, part_KsH: jax.Array, j: jax.Array) -> jax.Array:
    return paste(total_KTH, cut(total_KTH, j * BLOCK, BLOCK, 1) + part_KsH, j * BLOCK, 1)


def _by_head(x_RTNH: jax.Array, kv_heads: int) -> jax.Array:
    """[R, T, N, H] -> [R, K, Q, T, H]"""
    rows, tokens, heads, head_dim = x_RTNH.shape
    return x_RTNH.reshape(rows, tokens, kv_heads, heads // kv_heads, head_dim).transpose(0, 2, 3, 1, 4)


def _by_token(x_RKQTH: jax.Array) -> jax.Array:
    """[R, K, Q, T, H] -> [R, T, N, H]"""
    rows, kv_heads, queries, tokens, head_dim = x_RKQTH.shape
    return x_RKQTH.transpose(0, 3, 1, 2, 4).reshape(rows, tokens, kv_heads * queries, head_dim)
