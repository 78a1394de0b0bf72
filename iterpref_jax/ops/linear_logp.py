"""Log-probabilities of chosen targets without logits of the whole batch.

The vocabulary is taken in blocks: a tile of logits [R, G, B] is made, read and forgotten while it is in cache, by a
running log-sum-exp forward and, made again, by its gradient backward. A block of the table is gathered from the devices
that hold it when its turn comes, and its gradient is summed where it lives: neither the whole table nor all logits ever
exist on one device.

Letters: R row, T token, G gathered target, D embed, V vocab, B block of the vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

# Finite, so that a block before the first one of a running maximum gives exact zeros and no NaN.
LEAST = float(jnp.finfo(jnp.float32).min)


@dataclasses.dataclass(frozen=True)
class HeadShards:
    """The mesh, and its axes that split rows, the table's vocab and its embed dim (these split rows too)."""

    mesh: jax.sharding.Mesh
    rows: tuple[str, ...]
    vocab: tuple[str, ...]
    embed: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Projection:
    """How the vocabulary projection is computed.

    Args:
        tile_bytes: the size on one device of the float32 logits of one block.
        kept_bytes: if all logits of one device take no more than this, they are kept for the backward pass.
        softcap: bends logits smoothly into (-softcap, softcap); None leaves them.
        shards: None on one device.
    """

    tile_bytes: int
    kept_bytes: int
    softcap: float | None = None
    shards: HeadShards | None = None


def softcapped(logits: jax.Array, softcap: float | None) -> jax.Array:
    """Returns logits bent smoothly into (-softcap, softcap); None leaves them."""
    return logits if softcap is None else softcap * jnp.tanh(logits / softcap)


def gather_sources(hidden_RTD: jax.Array, source_RG: jax.Array) -> jax.Array:
    """Returns the hidden states [R, G, D] that predict the targets."""
    return jnp.take_along_axis(hidden_RTD, source_RG[:, :, None], axis=1)


def linear_logp(
    hidden_RGD: jax.Array, table_VD: jax.Array, target_RG: jax.Array, projection: Projection
) -> tuple[jax.Array, jax.Array]:
    """Returns log softmax(hidden @ table.T)[target] and that softmax's entropy (nats), float32 [R, G].

    Products of the inputs (the table in the hidden states' dtype) accumulate in float32 and log-sum-exp is float32:
    preference losses subtract sums over hundreds of tokens. The entropy has no gradient.
    """
    logp_RG, entropy_RG = _linear_logp(projection, hidden_RGD, table_VD, target_RG)
    return logp_RG, jax.lax.stop_gradient(entropy_RG)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _linear_logp(projection: Projection, hidden_RGD, table_VD, target_RG):
    return _forward(projection, False, hidden_RGD, table_VD, target_RG)[:2]


def _linear_logp_fwd(projection: Projection, hidden_RGD, table_VD, target_RG):
    arrays = hidden_RGD.value, table_VD.value, target_RG.value
    logp, entropy, lse, kept = _forward(projection, _keeps(projection, *arrays[:2]), *arrays)
    # Whether the table is trained (it is not under adapters) is told by a tree's structure: residuals cannot be bools.
    return (logp, entropy), (*arrays, lse, kept, () if table_VD.perturbed else None)


def _linear_logp_bwd(projection: Projection, residuals, cotangents):
    hidden, table, target, lse, kept, is_trained = residuals
    grad_RG = cotangents[0]
    if isinstance(grad_RG, jax.custom_derivatives.SymbolicZero):
        return jnp.zeros_like(hidden), jnp.zeros_like(table), None
    to_hidden, to_table = _backward(projection, is_trained is not None, hidden, table, target, lse, kept, grad_RG)
    return to_hidden, to_table, None


_linear_logp.defvjp(_linear_logp_fwd, _linear_logp_bwd, symbolic_zeros=True)


def _forward(projection: Projection, keeps: bool, hidden_RGD, table_VD, target_RG):
    """Returns log-probs, entropies and log-sum-exps [R, G], and all logits [blocks, R, G, B] or None."""
    on_device = functools.partial(_forward_on_device, projection, keeps)
    row, block, table = _specs(projection.shards)
    run = _on_shards(on_device, projection.shards, (row, table, row), (row, row, row, block if keeps else None))
    return run(hidden_RGD, table_VD, target_RG)


def _backward(projection: Projection, is_trained: bool, hidden_RGD, table_VD, target_RG, lse_RG, kept, grad_RG):
    """Returns the gradients of the hidden states and the table (zeros if it is not trained)."""
    on_device = functools.partial(_backward_on_device, projection, is_trained)
    row, block, table = _specs(projection.shards)
    ins = (row, table, row, row, None if kept is None else block, row)
    run = _on_shards(on_device, projection.shards, ins, (row, table))
    return run(hidden_RGD, table_VD, target_RG, lse_RG, kept, grad_RG)


def _specs(shards: HeadShards | None) -> tuple[Any, Any, Any]:
    """Returns the specs of arrays [R, ...], of kept logits [blocks, R, ...] and of the table."""
    if shards is None:
        return None, None, None
    rows, vocab, embed = (axes or None for axes in (shards.rows, shards.vocab, shards.embed))
    return PartitionSpec(rows), PartitionSpec(vocab, rows), PartitionSpec(vocab, embed)


def _on_shards(function: Callable[..., Any], shards: HeadShards | None, ins: tuple, outs: tuple) -> Callable[..., Any]:
    if shards is None:
        return function
    return jax.shard_map(function, mesh=shards.mesh, in_specs=ins, out_specs=outs, check_vma=False)


def _forward_on_device(projection: Projection, keeps: bool, hidden_RGD, table_VD, target_RG):
    blocks = _Blocks(projection, hidden_RGD, table_VD)

    def add(carry: tuple, number: jax.Array) -> tuple[tuple, jax.Array | None]:
        best, total, weighted, picked = carry
        logits = blocks.logits(number)
        counted = jnp.where(blocks.is_new(number), logits, LEAST)
        new_best = jnp.maximum(best, counted.max(-1))
        shrink, odds = jnp.exp(best - new_best), jnp.exp(counted - new_best[..., None])
        weighted = weighted * shrink + (odds * logits).sum(-1)
        picked += _pick(counted, target_RG - blocks.first_id(number))
        return (new_best, total * shrink + odds.sum(-1), weighted, picked), logits if keeps else None

    zeros = jnp.zeros(target_RG.shape, jnp.float32)
    (best, total, weighted, picked), kept = jax.lax.scan(add, (zeros + LEAST, zeros, zeros, zeros), blocks.numbers)
    if blocks.vocab_axes:
        best, here = jax.lax.pmax(best, blocks.vocab_axes), best
        shrink = jnp.exp(here - best)
        total, weighted, picked = jax.lax.psum((total * shrink, weighted * shrink, picked), blocks.vocab_axes)
    lse = best + jnp.log(total)
    return picked - lse, lse - weighted / total, lse, kept


def _backward_on_device(projection: Projection, is_trained: bool, hidden_RGD, table_VD, target_RG, lse_RG, kept, grad):
    blocks = _Blocks(projection, hidden_RGD, table_VD)

    def add(carry: tuple, number_and_kept: tuple) -> tuple[tuple, None]:
        to_hidden, to_table = carry
        number, logits = number_and_kept
        logits = blocks.logits(number) if logits is None else logits
        is_target = (target_RG - blocks.first_id(number))[..., None] == jnp.arange(blocks.size)
        to_logits = (is_target - jnp.exp(logits - lse_RG[..., None])) * grad[..., None]
        if projection.softcap is not None:
            to_logits *= 1 - jnp.square(logits / projection.softcap)
        to_logits = jnp.where(blocks.is_new(number), to_logits, 0).astype(hidden_RGD.dtype)
        product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
        to_hidden += product("rgv,vd->rgd", to_logits, blocks.table(number))
        if is_trained:
            to_table = blocks.add_to_table(to_table, number, product("rgv,rgd->vd", to_logits, hidden_RGD))
        return (to_hidden, to_table), None

    start = jnp.zeros(hidden_RGD.shape, jnp.float32), jnp.zeros(table_VD.shape if is_trained else (), jnp.float32)
    (to_hidden, to_table), _ = jax.lax.scan(add, start, (blocks.numbers, kept))
    if blocks.vocab_axes:
        to_hidden = jax.lax.psum(to_hidden, blocks.vocab_axes)
    to_table = blocks.summed(to_table).astype(table_VD.dtype) if is_trained else jnp.zeros_like(table_VD)
    return to_hidden.astype(hidden_RGD.dtype), to_table


class _Blocks:
    """The vocabulary on one device, block by block. The last block reaches back over ids that the one before has."""

    def __init__(self, projection: Projection, hidden_RGD: jax.Array, table_VD: jax.Array):
        rows, targets, _ = hidden_RGD.shape
        shards = projection.shards
        self.row_axes, self.vocab_axes, self.embed_axes = (
            ((), (), ()) if shards is None else (shards.rows, shards.vocab, shards.embed)
        )
        self._hidden, self._table, self._softcap = hidden_RGD, table_VD, projection.softcap
        self._vocab = table_VD.shape[0]
        self.size = block_size(projection.tile_bytes, rows * targets, self._vocab)
        self.numbers = jnp.arange(-(-self._vocab // self.size))

    def _start(self, number: jax.Array) -> jax.Array:
        return jnp.minimum(number * self.size, self._vocab - self.size)

    def first_id(self, number: jax.Array) -> jax.Array:
        """Returns the token id of the block's first logit."""
        here = jax.lax.axis_index(self.vocab_axes) * self._vocab if self.vocab_axes else 0
        return here + self._start(number)

    def is_new(self, number: jax.Array) -> jax.Array:
        """Returns which ids [B] of the block no earlier block holds."""
        return self._start(number) + jnp.arange(self.size) >= number * self.size

    def table(self, number: jax.Array) -> jax.Array:
        """Returns the block of the table [B, D] in the hidden states' dtype."""
        block = jax.lax.dynamic_slice_in_dim(self._table, self._start(number), self.size, axis=0)
        block = block.astype(self._hidden.dtype)
        return jax.lax.all_gather(block, self.embed_axes, axis=1, tiled=True) if self.embed_axes else block

    def logits(self, number: jax.Array) -> jax.Array:
        """Returns the logits [R, G, B], float32."""
        block = self.table(number)
        logits = jnp.einsum("rgd,vd->rgv", self._hidden, block, preferred_element_type=jnp.float32)
        return softcapped(logits, self._softcap)

    def add_to_table(self, total: jax.Array, number: jax.Array, part: jax.Array) -> jax.Array:
        """Adds the gradient [B, D] of a block to this device's part of the table."""
        if self.embed_axes:
            part = jax.lax.psum_scatter(part, self.embed_axes, scatter_dimension=1, tiled=True)
        start = self._start(number)
        part += jax.lax.dynamic_slice_in_dim(total, start, self.size, axis=0)
        return jax.lax.dynamic_update_slice_in_dim(total, part, start, axis=0)

    def summed(self, total: jax.Array) -> jax.Array:
        """Sums the table's gradient over the rows that `add_to_table` has not summed over."""
        axes = tuple(axis for axis in self.row_axes if axis not in self.embed_axes)
        return jax.lax.psum(total, axes) if axes else total


def block_size(tile_bytes: int, targets: int, vocab: int) -> int:
    """Returns the ids of one block, a multiple of 128: blocks are even, and a block's float32 logits fit `tile_bytes`.

    >>> block_size(128 << 20, 1024, 152_064)
    30464
    """
    most = max(128, tile_bytes // (4 * targets) // 128 * 128)
    blocks = -(-vocab // most)
    return min(-(-vocab // (128 * blocks)) * 128, vocab)


def _keeps(projection: Projection, hidden_RGD: jax.Array, table_VD: jax.Array) -> bool:
    shards, logits = projection.shards, hidden_RGD.shape[0] * hidden_RGD.shape[1] * table_VD.shape[0]
    for axis in () if shards is None else (*shards.rows, *shards.vocab):
        logits //= shards.mesh.shape[axis]
    return 4 * logits <= projection.kept_bytes


def _pick(logits_RGB: jax.Array, place_RG: jax.Array) -> jax.Array:
    """Returns the logit of each target that lies in this block (and is new), else 0."""
    size = logits_RGB.shape[-1]
    found = jnp.take_along_axis(logits_RGB, jnp.clip(place_RG, 0, size - 1)[..., None], axis=-1)[..., 0]
    return jnp.where((place_RG >= 0) & (place_RG < size) & (found > LEAST), found, 0)
