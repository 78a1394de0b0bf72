"""Tree attention for TPUs: Pallas (Mosaic) kernels that walk only the blocks in which something is visible.

Letters: R row, T token, N query heads, K key/value heads, H head dim. Each kernel keeps one *outer* block (queries for
the output and dq, keys for dk and dv) in sublanes, and walks the *inner* blocks that it meets, which lie in lanes: so
every product has its natural layout, and what belongs to inner tokens is a row that broadcasts for free. The
algorithm is FlashAttention-2 (Dao 2023): running softmax forward, scores computed again from the log-sum-exp backward.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from iterpref_jax.ops.kept import ATTENTION
from iterpref_jax.ops.tree_blocks import MASKED, Visits, in_whole_blocks, tree_blocks

LANES = 128
MAX_BLOCK = 512

# Above MASKED, below any score: exp(MASKED - maximum) is 0 also for a query that has seen no key.
NO_MAXIMUM = MASKED / 2


@dataclasses.dataclass(frozen=True)
class _Options:
    scale: float
    window: int | None
    block: int
    interpret: bool


def tree_attention_tpu(
    query_RTNH: jax.Array,
    key_RTKH: jax.Array,
    value_RTKH: jax.Array,
    visible_until_RT: jax.Array,
    depth_RT: jax.Array,
    *,
    scale: float,
    window: int | None,
    interpret: bool = False,
) -> jax.Array:
    """Returns attention outputs [R, T, N, H], zeros for padding queries; `interpret` runs on any platform."""
    tokens = query_RTNH.shape[1]
    block = block_size(tokens)
    until_RT, depth_RT = (in_whole_blocks(x, block).astype(jnp.int32) for x in (visible_until_RT, depth_RT))
    blocks = tree_blocks(until_RT, depth_RT, window, query_block=block, key_block=block)
    rows_R12T = jnp.stack([until_RT, depth_RT], axis=1)[:, None]
    heads_first = [in_whole_blocks(array, block).swapaxes(1, 2) for array in (query_RTNH, key_RTKH, value_RTKH)]
    options = _Options(scale, window, block, interpret)
    out_RNTH: jax.Array = _attend(*heads_first, rows_R12T, blocks, options)
    return out_RNTH.swapaxes(1, 2)[:, :tokens]


def block_size(tokens: int) -> int:
    """Returns the tokens of a block: a multiple of the lanes, at most MAX_BLOCK, in blocks as even as that allows."""
    blocks = -(-tokens // MAX_BLOCK)
    return -(-tokens // (blocks * LANES)) * LANES


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend(query_RNTH, key_RKTH, value_RKTH, rows_R12T, blocks, options: _Options) -> jax.Array:
    return _forward(query_RNTH, key_RKTH, value_RKTH, rows_R12T, blocks, options)[0]


def _forward(query_RNTH, key_RKTH, value_RKTH, rows_R12T, blocks, options: _Options):
    """Returns the outputs and what the backward pass needs; log-sum-exps are [R, N, 1, T]."""
    rows, heads, tokens, head_dim = query_RNTH.shape
    group = heads // key_RKTH.shape[1]
    out_RNTH, lse_RN1T = _walk(
        _forward_kernel,
        blocks.keys_RIJ,
        outer=(query_RNTH, rows_R12T),
        inner=(key_RKTH, value_RKTH, rows_R12T),
        inner_heads=(1, lambda head, _: head // group),
        out=[query_RNTH, jax.ShapeDtypeStruct((rows, heads, 1, tokens), jnp.float32)],
        scratch=[(options.block, LANES), (options.block, LANES), (options.block, head_dim)],
        options=options,
    )
    out_RNTH, lse_RN1T = (checkpoint_name(x, ATTENTION) for x in (out_RNTH, lse_RN1T))
    return out_RNTH, (query_RNTH, key_RKTH, value_RKTH, rows_R12T, blocks, out_RNTH, lse_RN1T)


def _backward(options: _Options, kept, grad_RNTH):
    query_RNTH, key_RKTH, value_RKTH, rows_R12T, blocks, out_RNTH, lse_RN1T = kept
    group, head_dim = query_RNTH.shape[1] // key_RKTH.shape[1], query_RNTH.shape[3]
    # The softmax's own share of the gradient of the scores, one number a query.
    own_RN1T = jnp.sum(out_RNTH.astype(jnp.float32) * grad_RNTH.astype(jnp.float32), axis=3)[:, :, None]
    (dq_RNTH,) = _walk(
        _dq_kernel,
        blocks.keys_RIJ,
        outer=(query_RNTH, grad_RNTH, lse_RN1T, own_RN1T, rows_R12T),
        inner=(key_RKTH, value_RKTH, rows_R12T),
        inner_heads=(1, lambda head, _: head // group),
        out=[query_RNTH],
        scratch=[(options.block, LANES), (options.block, LANES), (options.block, head_dim)],
        options=options,
    )
    dk_RKTH, dv_RKTH = _walk(
        _dkv_kernel,
        blocks.queries_RJI,
        outer=(key_RKTH, value_RKTH, rows_R12T),
        inner=(query_RNTH, grad_RNTH, lse_RN1T, own_RN1T, rows_R12T),
        inner_heads=(group, lambda head, member: head * group + member),
        out=[key_RKTH, value_RKTH],
        scratch=[(options.block, head_dim)] * 2,
        options=options,
    )
    return dq_RNTH, dk_RKTH, dv_RKTH, None, None


_attend.defvjp(_forward, _backward)


def _walk(
    kernel: Callable[..., None],
    visits: Visits,
    *,
    outer: Sequence[Any],
    inner: Sequence[Any],
    inner_heads: tuple[int, Callable],
    out: Sequence[Any],
    scratch: Sequence[tuple[int, int]],
    options: _Options,
) -> list[jax.Array]:
    """Runs a kernel over the grid (row, outer head, outer block, inner head of the outer one, step of the visits).

    Arrays are [R, heads, T, H] or, what a token has one number of, [R, heads or 1, numbers, T]; `out` lies like
    `outer`. `inner_heads`: how many an outer head meets, and (outer head, which of them) -> inner head.
    """
    members, inner_head = inner_heads
    (rows, heads), blocks = outer[0].shape[:2], visits.count.shape[1]

    def outer_at(row, head, block, member, step, *tables):
        return row, head, block

    def inner_at(row, head, block, member, step, count, other, full):
        return row, inner_head(head, member), other[(row * blocks + block) * blocks + step]

    specs = functools.partial(_block_specs, options.block)
    return pl.pallas_call(
        functools.partial(kernel, options=options),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(visits),
            grid=(rows, heads, blocks, members, blocks),
            in_specs=specs(outer_at, outer) + specs(inner_at, inner),
            out_specs=specs(outer_at, out),
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
        ),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in out],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",) * 3 + ("arbitrary",) * 2),
        interpret=options.interpret,
        name=kernel.__name__.strip("_"),
    )(*(table.reshape(-1) for table in visits), *outer, *inner)


def _block_specs(block: int, at: Callable, arrays: Sequence[Any]) -> list[pl.BlockSpec]:
    """Returns how arrays are cut, given `at`: a place in the grid -> (row, head, number of the block)."""

    def spec(heads: int, sublanes: int, lanes: int) -> pl.BlockSpec:
        # T is at least a block, so fewer sublanes mean numbers by token.
        in_lanes = sublanes < block

        def index(*place):
            row, head, number = at(*place)
            head = head if heads > 1 else 0
            return (row, head, 0, number) if in_lanes else (row, head, number, 0)

        return pl.BlockSpec((None, None, sublanes, block) if in_lanes else (None, None, block, lanes), index)

    return [spec(*array.shape[1:]) for array in arrays]


class _Step:
    """Where a kernel is in its walk: the first and last step of an outer block, and the blocks that meet now."""

    def __init__(self, tables: Sequence[Any], options: _Options):
        count, other, full = tables
        row, self.outer, member, step = (pl.program_id(axis) for axis in (0, 2, 3, 4))
        blocks = pl.num_programs(2)
        outer = row * blocks + self.outer
        self.first = (member == 0) & (step == 0)
        self.last = (member == pl.num_programs(3) - 1) & (step == blocks - 1)
        self.meets = step < count[outer]
        self.full = full[outer * blocks + step] == 1
        self.inner = other[outer * blocks + step]
        self.options = options

    def visit(self, body: Callable[[Callable[[jax.Array], jax.Array]], None], outer, inner, *, keys: str) -> None:
        """Calls `body` with what masks its scores; `outer` and `inner` hold visible_until and depth, `keys` is one."""

        def masked(scores: jax.Array) -> jax.Array:
            return jnp.where(self._visible(outer, inner, keys), scores, MASKED)

        pl.when(self.meets & self.full)(lambda: body(lambda scores: scores))
        pl.when(self.meets & ~self.full)(lambda: body(masked))

    def _visible(self, outer, inner, keys: str) -> jax.Array:
        block = self.options.block
        columns = [
            number * block + jax.lax.broadcasted_iota(jnp.int32, (block, block), axis)
            for axis, number in enumerate((self.outer, self.inner))
        ]
        key, query = (0, 1) if keys == "outer" else (1, 0)

        def number(which: int, side: int) -> jax.Array:
            row = slice(which, which + 1)
            return inner[row] if side else _widened(_column(outer[row]), block)

        seen = (columns[key] <= columns[query]) & (columns[query] < number(0, key))
        if self.options.window is not None:
            seen &= number(1, query) - number(1, key) < self.options.window
        return seen


def _forward_kernel(*refs, options: _Options) -> None:
    *tables, query, query_rows, key, value, key_rows, out, lse, maximum, total, weighted = refs
    step = _Step(tables, options)

    @pl.when(step.first)
    def _():
        maximum[...] = jnp.full_like(maximum, NO_MAXIMUM)
        total[...] = jnp.zeros_like(total)
        weighted[...] = jnp.zeros_like(weighted)

    def visit(mask):
        scores = mask(_by_head_dim(query[...], key[...]) * options.scale)
        before, now = maximum[...], jnp.maximum(maximum[...], scores.max(axis=1, keepdims=True))
        weights, shrunk = jnp.exp(scores - _widened(now, scores.shape[1])), jnp.exp(before - now)
        maximum[...] = now
        total[...] = shrunk * total[...] + weights.sum(axis=1, keepdims=True)
        weighted[...] = _widened(shrunk, weighted.shape[1]) * weighted[...] + _product(weights, value[...])

    step.visit(visit, query_rows, key_rows, keys="inner")

    @pl.when(step.last)
    def _():
        divisor = jnp.where(total[...] > 0, total[...], 1.0)
        out[...] = (weighted[...] / _widened(divisor, out.shape[1])).astype(out.dtype)
        lse[...] = (maximum[...] + jnp.log(divisor)).T[:1]


def _dq_kernel(*refs, options: _Options) -> None:
    *tables, query, grad, lse, own, query_rows, key, value, key_rows, dq, lse_column, own_column, total = refs
    step = _Step(tables, options)

    @pl.when(step.first)
    def _():
        lse_column[...], own_column[...] = _column(lse[...]), _column(own[...])
        total[...] = jnp.zeros_like(total)

    def visit(mask):
        scores = mask(_by_head_dim(query[...], key[...]) * options.scale)
        weights = jnp.exp(scores - _widened(lse_column[...], scores.shape[1]))
        slopes = _by_head_dim(grad[...], value[...]) - _widened(own_column[...], scores.shape[1])
        total[...] += _product(weights * slopes, key[...])

    step.visit(visit, query_rows, key_rows, keys="inner")

    @pl.when(step.last)
    def _():
        dq[...] = (total[...] * options.scale).astype(dq.dtype)


def _dkv_kernel(*refs, options: _Options) -> None:
    *tables, key, value, key_rows, query, grad, lse, own, query_rows, dk, dv, dk_total, dv_total = refs
    step = _Step(tables, options)

    @pl.when(step.first)
    def _():
        dk_total[...], dv_total[...] = jnp.zeros_like(dk_total), jnp.zeros_like(dv_total)

    def visit(mask):
        weights = jnp.exp(mask(_by_head_dim(key[...], query[...]) * options.scale) - lse[...])
        slopes = _by_head_dim(value[...], grad[...]) - own[...]
        dv_total[...] += _product(weights, grad[...])
        dk_total[...] += _product(weights * slopes, query[...])

    step.visit(visit, key_rows, query_rows, keys="outer")

    @pl.when(step.last)
    def _():
        dk[...] = (dk_total[...] * options.scale).astype(dk.dtype)
        dv[...] = dv_total[...].astype(dv.dtype)


def _by_head_dim(outer_OH: jax.Array, inner_IH: jax.Array) -> jax.Array:
    return _dot(outer_OH, inner_IH, 1)


def _product(weights_OI: jax.Array, inner_IH: jax.Array) -> jax.Array:
    return _dot(weights_OI.astype(inner_IH.dtype), inner_IH, 0)


def _dot(left: jax.Array, right: jax.Array, right_axis: int) -> jax.Array:
    # The matrix unit takes bfloat16; float32 stays float32 only if told so.
    precision = jax.lax.Precision.HIGHEST if right.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    dims = (((1,), (right_axis,)), ((), ()))
    return jax.lax.dot_general(left, right, dims, precision=precision, preferred_element_type=jnp.float32)


def _column(row_1B: jax.Array) -> jax.Array:
    """Returns [B, LANES]: one number a token, from lanes to sublanes."""
    return jnp.broadcast_to(row_1B, (LANES, row_1B.shape[1])).T


def _widened(column_BL: jax.Array, width: int) -> jax.Array:
    """Returns [B, width] of a column whose lanes are all alike."""
    return jnp.tile(column_BL, (1, pl.cdiv(width, LANES)))[:, :width]
