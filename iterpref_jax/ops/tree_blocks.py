"""What a query of a packed tree sees: the mask itself, and which blocks of it hold anything, for the kernels to walk.

Letters: R row, T token, I query block, J key block. The lists cost one comparison per token and block (T * I), never a
dense mask. All is exact but one thing: with a window, a block may be listed in which the mask turns out empty, where
the query block also holds tokens of another branch that lie less deep.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

# The score of what is not visible. Finite, so that a padding query, which sees no key, gets a finite (and unused)
# output and no NaN gradient.
MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)


class Visits(NamedTuple):
    """For every block of one side, the blocks of the other side that it meets, in ascending order (int32).

    `other[r, b, :count[r, b]]` are those blocks; what follows repeats the last one, so that a pipelined fetch of it
    costs nothing (it is 0 where there is none). `full[r, b, n]` is 1 where every query of that pair of blocks sees
    every key, so that no mask is needed.
    """

    count: jax.Array
    other: jax.Array
    full: jax.Array


class TreeBlocks(NamedTuple):
    """Both directions of one mask: keys of each query block (forward, dq), queries of each key block (dk, dv)."""

    keys_RIJ: Visits
    queries_RJI: Visits


def visible(
    visible_until_RT: jax.Array, depth_RT: jax.Array, window: int | None, *, start: int = 0, stop: int | None = None
) -> jax.Array:
    """Returns the mask [R, query, key] of the queries in columns start:stop and the keys in columns 0:stop.

    j <= i < visible_until[j], and depth[i] - depth[j] < window if there is one. A window counts positions in the
    token's own branch (depth), not columns. The form is FlashMask's column range of a tree.
    """
    stop = visible_until_RT.shape[1] if stop is None else stop
    query, key = jnp.arange(start, stop)[None, :, None], jnp.arange(stop)[None, None, :]
    mask = (key <= query) & (query < visible_until_RT[:, None, :stop])
    if window is not None:
        mask &= depth_RT[:, start:stop, None] - depth_RT[:, None, :stop] < window
    return mask


def in_whole_blocks(array_RT: jax.Array, block: int) -> jax.Array:
    """Returns an array [R, T, ...] whose T is padded with zeros to whole blocks: columns that nobody sees."""
    return jnp.pad(array_RT, [(0, 0), (0, -array_RT.shape[1] % block)] + [(0, 0)] * (array_RT.ndim - 2))


def tree_blocks(
    visible_until_RT: jax.Array, depth_RT: jax.Array, window: int | None, *, query_block: int, key_block: int
) -> TreeBlocks:
    """Returns what blocks of `query_block` queries and `key_block` keys have to meet; both must divide T."""
    some_RIJ = _some_visible(visible_until_RT, depth_RT, window, query_block, key_block)
    all_RIJ = _all_visible(visible_until_RT, depth_RT, window, query_block, key_block)
    return TreeBlocks(_visits(some_RIJ, all_RIJ), _visits(some_RIJ.swapaxes(1, 2), all_RIJ.swapaxes(1, 2)))


def _some_visible(until_RT, depth_RT, window: int | None, query_block: int, key_block: int) -> jax.Array:
    """Whether a query of block I sees a key of block J; with a window, whether it might.

    The queries of key j are the columns j:until[j], so a block holds one of them iff it is neither before the block of
    j nor after that of until[j] - 1. A window is held against the least depth of the whole block, other branches
    included.
    """
    rows, tokens = until_RT.shape
    block_I1 = jnp.arange(tokens // query_block)[:, None]
    first_T, last_R1T = jnp.arange(tokens) // query_block, ((until_RT - 1) // query_block)[:, None]
    seen_RIT = (first_T <= block_I1) & (block_I1 <= last_R1T)
    if window is not None:
        least_RI1 = depth_RT.reshape(rows, -1, query_block).min(axis=2, keepdims=True)
        # Every key sees itself.
        seen_RIT &= (block_I1 == first_T) | (least_RI1 - depth_RT[:, None] < window)
    return seen_RIT.reshape(rows, tokens // query_block, -1, key_block).any(axis=3)


def _all_visible(until_RT, depth_RT, window: int | None, query_block: int, key_block: int) -> jax.Array:
    """Whether all queries of block I see all keys of block J: never so with padding in either."""
    rows, tokens = until_RT.shape
    first_I1 = jnp.arange(0, tokens, query_block)[:, None]
    last_J = jnp.arange(key_block - 1, tokens, key_block)
    until_RJ = until_RT.reshape(rows, -1, key_block).min(axis=2)
    full_RIJ = (last_J <= first_I1) & (until_RJ[:, None] >= first_I1 + query_block)
    if window is not None:
        deepest_RI1 = depth_RT.reshape(rows, -1, query_block).max(axis=2, keepdims=True)
        full_RIJ &= deepest_RI1 - depth_RT.reshape(rows, 1, -1, key_block).min(axis=3) < window
    return full_RIJ


def _visits(some_RBO: jax.Array, all_RBO: jax.Array) -> Visits:
    count = some_RBO.sum(axis=2, dtype=jnp.int32)
    to_front = jnp.argsort(~some_RBO, axis=2, stable=True).astype(jnp.int32)
    place = jnp.minimum(jnp.arange(some_RBO.shape[2]), jnp.maximum(count - 1, 0)[..., None])
    other = jnp.take_along_axis(to_front, place, axis=2)
    return Visits(count, other, jnp.take_along_axis(all_RBO, other, axis=2).astype(jnp.int32))
