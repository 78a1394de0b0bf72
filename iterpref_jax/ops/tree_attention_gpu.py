"""Tree attention on GPUs: Pallas kernels for Triton that read only the blocks that somebody sees.

The algorithm is FlashAttention-2's (arXiv 2307.08691), forward and backward, over the lists of `tree_blocks`. cuDNN
over a dense mask takes over four times as long (benchmarks/RESULTS.md).

Letters: R row, T token, N query heads, K key/value heads, H head dim, B block of one side, O block of the other side.
In a kernel, q and k are the queries and keys of one block, and arrays of the whole batch are references to device
memory.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from iterpref_jax.ops.kept import ATTENTION
from iterpref_jax.ops.tree_blocks import MASKED, TreeBlocks, Visits, tree_blocks

# The softmax is taken in powers of two, which the hardware computes directly.
LOG2_E = math.log2(math.e)


class Tile(NamedTuple):
    """Sizes of one kernel: queries and keys in a block, warps that work on a block, loads in flight."""

    queries: int
    keys: int
    warps: int
    stages: int


class Tiles(NamedTuple):
    """The tile of each kernel: outputs, gradients of queries, gradients of keys and values."""

    forward: Tile
    query: Tile
    key: Tile


class Operands(NamedTuple):
    """What every kernel reads."""

    query_RTNH: Any
    key_RTKH: Any
    value_RTKH: Any
    until_RT: Any
    depth_RT: Any

    @property
    def group(self) -> int:
        """Query heads that share one key/value head."""
        return self.query_RTNH.shape[2] // self.key_RTKH.shape[2]


class Lists(NamedTuple):
    """For every block of one side, those of the other side that it meets: `masked` ones first, `count` in all."""

    masked_RB: Any
    count_RB: Any
    other_RBO: Any


class Spec(NamedTuple):
    """What is static in one call."""

    scale: float
    window: int | None
    tiles: Tiles
    interpret: bool


def pick_tiles(head_dim: int, itemsize: int) -> Tiles:
    """Returns tiles for a padded head dim: for 128 timed on an H100 (benchmarks/gpu_tiles.py), for others chosen from
    what the compiler says for compute capability 8.6 and 9.0.

    They take less than 99 KB of shared memory, the least that a GPU with bfloat16 has, and spill next to no registers.
    """
    if itemsize > 2:
        # float32 is for checks, in small tiles: exact products (jax_default_matmul_precision=highest) compile slowly.
        side = 32 if head_dim <= 128 else 16
        return Tiles(*[Tile(side, side, 4, 2)] * 3)
    if head_dim > 128:
        return Tiles(Tile(64, 32, 4, 2), Tile(64, 16, 4, 2), Tile(16, 64, 8, 2))
    return Tiles(Tile(128, 64, 4, 2), Tile(64, 64, 4, 2), Tile(64, 64, 4, 2))


def tree_attention_gpu(
    query_RTNH: jax.Array,
    key_RTKH: jax.Array,
    value_RTKH: jax.Array,
    visible_until_RT: jax.Array,
    depth_RT: jax.Array,
    *,
    scale: float,
    window: int | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Returns attention outputs [R, T, N, H], zeros for padding queries; `interpret` runs on any platform."""
    tokens, head_dim = query_RTNH.shape[1], query_RTNH.shape[3]
    # Triton takes powers of two only.
    padded_dim = pl.next_power_of_2(head_dim)
    spec = Spec(scale, window, pick_tiles(padded_dim, query_RTNH.dtype.itemsize), interpret)
    more = -tokens % max(size for tile in spec.tiles for size in (tile.queries, tile.keys))
    padding = ((0, 0), (0, more), (0, 0), (0, padded_dim - head_dim))
    heads = [jnp.pad(x, padding) for x in (query_RTNH, key_RTKH, value_RTKH)]
    columns = [jnp.pad(x, padding[:2]) for x in (visible_until_RT, depth_RT)]
    out: jax.Array = _attention(spec, Operands(*heads, *columns))
    return out[:, :tokens, :, :head_dim]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(spec: Spec, operands: Operands) -> jax.Array:
    return _forward(spec, operands)[0]


def _forward(spec: Spec, operands: Operands) -> tuple[jax.Array, tuple]:
    rows, tokens, heads, _ = operands.query_RTNH.shape
    tile = spec.tiles.forward
    lists = _masked_first(_blocks(spec, operands, tile).keys_RIJ)
    shapes = operands.query_RTNH, jax.ShapeDtypeStruct((rows, heads, tokens), jnp.float32)
    out, lse = _call(_forward_kernel, spec, tile, (heads, rows, tokens // tile.queries), shapes)(operands, lists)
    out, lse = (checkpoint_name(x, ATTENTION) for x in (out, lse))
    return out, (operands, out, lse)


def _backward(spec: Spec, saved: tuple, dout_RTNH: jax.Array) -> tuple[Operands]:
    operands, out, lse = saved
    rows, tokens, heads, _ = operands.query_RTNH.shape
    delta = jnp.einsum("rtnh,rtnh->rnt", dout_RTNH, out, preferred_element_type=jnp.float32)
    given = operands, dout_RTNH, lse, delta

    tile = spec.tiles.query
    lists = _masked_first(_blocks(spec, operands, tile).keys_RIJ)
    grid = heads, rows, tokens // tile.queries
    dquery = _call(_query_kernel, spec, tile, grid, operands.query_RTNH)(*given, lists)

    tile = spec.tiles.key
    lists = _masked_first(_blocks(spec, operands, tile).queries_RJI)
    grid = operands.key_RTKH.shape[2], rows, tokens // tile.keys
    dkey, dvalue = _call(_key_kernel, spec, tile, grid, (operands.key_RTKH, operands.value_RTKH))(*given, lists)
    return (Operands(dquery, dkey, dvalue, None, None),)


_attention.defvjp(_forward, _backward)


def _blocks(spec: Spec, operands: Operands, tile: Tile) -> TreeBlocks:
    sizes = dict(query_block=tile.queries, key_block=tile.keys)
    return tree_blocks(operands.until_RT, operands.depth_RT, spec.window, **sizes)


def _masked_first(visits: Visits) -> Lists:
    """Returns lists in two parts: a loop over each has no branch, without which Triton cannot overlap its loads."""
    listed_RBO = jnp.arange(visits.other.shape[2]) < visits.count[..., None]
    full_RBO = jnp.where(listed_RBO, visits.full, 2)
    other_RBO = jnp.take_along_axis(visits.other, jnp.argsort(full_RBO, axis=2), axis=2)
    return Lists((full_RBO == 0).sum(axis=2, dtype=jnp.int32), visits.count, other_RBO)


def _call(kernel: Callable, spec: Spec, tile: Tile, grid: tuple[int, ...], out_shape: Any) -> Callable:
    return pl.pallas_call(
        functools.partial(kernel, spec=spec),
        grid=grid,
        out_shape=jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), out_shape),
        compiler_params=triton.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
        interpret=spec.interpret,
        name=f"tree_attention{kernel.__name__.removesuffix('_kernel')}",
    )


def _walk(lists: Lists, row: jax.Array, block: jax.Array, size: int, step: Callable, carry: Any) -> Any:
    """Runs `step(columns, masked, carry)` over the blocks, of `size` columns each, in the list of a block."""
    masked = lists.masked_RB[row, block]

    def run(is_masked: bool) -> Callable:
        return lambda n, carry: step(pl.ds(lists.other_RBO[row, block, n] * size, size), is_masked, carry)

    carry = lax.fori_loop(0, masked, run(True), carry)
    return lax.fori_loop(masked, lists.count_RB[row, block], run(False), carry)


def _columns(block: Any) -> jax.Array:
    return block.start + jnp.arange(block.size)


def _scores(spec: Spec, operands: Operands, row, left, right, query, key, masked: bool) -> jax.Array:
    """Returns left @ right.T scaled for powers of two, -inf where a query does not see a key.

    `query` and `key` are the columns of both sides, in shapes that broadcast to the scores.
    """
    scores = triton.dot(left, right, trans_b=True) * (spec.scale * LOG2_E)
    if not masked:
        return scores
    mask = (key <= query) & (query < operands.until_RT[row, key])
    if spec.window is not None:
        mask &= operands.depth_RT[row, query] - operands.depth_RT[row, key] < spec.window
    return jnp.where(mask, scores, -jnp.inf)


def _query_place(operands: Operands) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Returns row, query head, its key/value head, and block of queries of this program."""
    head, row = pl.program_id(0), pl.program_id(1)
    # The last queries tend to have the longest lists, and what takes longest starts first.
    block = pl.num_programs(2) - 1 - pl.program_id(2)
    return row, head, lax.div(head, operands.group), block


def _forward_kernel(operands: Operands, lists: Lists, out_RTNH, lse_RNT, *, spec: Spec) -> None:
    """Writes the outputs of one block of queries and the base 2 log-sum-exp of their scores."""
    tile = spec.tiles.forward
    row, head, kv_head, block = _query_place(operands)
    queries = pl.ds(block * tile.queries, tile.queries)
    query_qH, query_q1 = operands.query_RTNH[row, queries, head], _columns(queries)[:, None]

    def step(keys: Any, masked: bool, carry: tuple) -> tuple:
        best_q, total_q, out_qH = carry
        key_kH, value_kH = operands.key_RTKH[row, keys, kv_head], operands.value_RTKH[row, keys, kv_head]
        scores_qk = _scores(spec, operands, row, query_qH, key_kH, query_q1, _columns(keys)[None], masked)
        new_best_q = jnp.maximum(best_q, scores_qk.max(axis=1))
        weights_qk = jnp.exp2(scores_qk - new_best_q[:, None])
        shrink_q = jnp.exp2(best_q - new_best_q)
        mixed_qH = triton.dot(weights_qk.astype(value_kH.dtype), value_kH)
        return new_best_q, total_q * shrink_q + weights_qk.sum(axis=1), out_qH * shrink_q[:, None] + mixed_qH

    # The running maximum starts finite, so that hidden scores, which are -inf, add exact zeros.
    start = jnp.full(tile.queries, MASKED, jnp.float32), jnp.zeros(tile.queries), jnp.zeros(query_qH.shape)
    best_q, total_q, out_qH = _walk(lists, row, block, tile.keys, step, start)
    total_q = jnp.where(total_q == 0, 1, total_q)
    out_RTNH[row, queries, head] = (out_qH / total_q[:, None]).astype(out_RTNH.dtype)
    lse_RNT[row, head, queries] = best_q + jnp.log2(total_q)


def _query_kernel(operands: Operands, dout_RTNH, lse_RNT, delta_RNT, lists: Lists, dquery_RTNH, *, spec: Spec) -> None:
    """Writes the gradient of one block of queries."""
    tile = spec.tiles.query
    row, head, kv_head, block = _query_place(operands)
    queries = pl.ds(block * tile.queries, tile.queries)
    query_qH, query_q1 = operands.query_RTNH[row, queries, head], _columns(queries)[:, None]
    dout_qH = dout_RTNH[row, queries, head]
    lse_q1, delta_q1 = lse_RNT[row, head, queries][:, None], delta_RNT[row, head, queries][:, None]

    def step(keys: Any, masked: bool, dquery_qH: jax.Array) -> jax.Array:
        key_kH, value_kH = operands.key_RTKH[row, keys, kv_head], operands.value_RTKH[row, keys, kv_head]
        scores_qk = _scores(spec, operands, row, query_qH, key_kH, query_q1, _columns(keys)[None], masked)
        dweights_qk = triton.dot(dout_qH, value_kH, trans_b=True)
        dscores_qk = jnp.exp2(scores_qk - lse_q1) * (dweights_qk - delta_q1)
        return dquery_qH + triton.dot(dscores_qk.astype(key_kH.dtype), key_kH)

    dquery_qH = _walk(lists, row, block, tile.keys, step, jnp.zeros(query_qH.shape))
    dquery_RTNH[row, queries, head] = (dquery_qH * spec.scale).astype(dquery_RTNH.dtype)


def _key_kernel(
    operands: Operands, dout_RTNH, lse_RNT, delta_RNT, lists: Lists, dkey_RTKH, dvalue_RTKH, *, spec: Spec
) -> None:
    """Writes the gradients of one block of keys and values, summed over their query heads.

    Scores are transposed here: what the products need on their left is then in registers already.
    """
    tile = spec.tiles.key
    kv_head, row, block = (pl.program_id(axis) for axis in range(3))
    keys = pl.ds(block * tile.keys, tile.keys)
    key_kH, value_kH = operands.key_RTKH[row, keys, kv_head], operands.value_RTKH[row, keys, kv_head]
    key_k1 = _columns(keys)[:, None]

    def add_head(head: jax.Array, carry: tuple) -> tuple:
        def step(queries: Any, masked: bool, carry: tuple) -> tuple:
            dkey_kH, dvalue_kH = carry
            query_qH, dout_qH = operands.query_RTNH[row, queries, head], dout_RTNH[row, queries, head]
            scores_kq = _scores(spec, operands, row, key_kH, query_qH, _columns(queries)[None], key_k1, masked)
            weights_kq = jnp.exp2(scores_kq - lse_RNT[row, head, queries][None])
            dvalue_kH += triton.dot(weights_kq.astype(dout_qH.dtype), dout_qH)
            dweights_kq = triton.dot(value_kH, dout_qH, trans_b=True)
            dscores_kq = weights_kq * (dweights_kq - delta_RNT[row, head, queries][None])
            return dkey_kH + triton.dot(dscores_kq.astype(query_qH.dtype), query_qH), dvalue_kH

        return _walk(lists, row, block, tile.queries, step, carry)

    start = jnp.zeros(key_kH.shape), jnp.zeros(key_kH.shape)
    heads = kv_head * operands.group, (kv_head + 1) * operands.group
    dkey_kH, dvalue_kH = lax.fori_loop(*heads, add_head, start)
    dkey_RTKH[row, keys, kv_head] = (dkey_kH * spec.scale).astype(dkey_RTKH.dtype)
    dvalue_RTKH[row, keys, kv_head] = dvalue_kH.astype(dvalue_RTKH.dtype)
