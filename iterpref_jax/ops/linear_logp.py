"""Log-probabilities of chosen targets without logits of the whole batch.

The vocabulary is taken in blocks and the targets of a device in tiles, as far as there are any: a tile of logits [N, B]
is made, read and forgotten while it is in cache, by a running log-sum-exp forward and, made again, by its gradient
backward. A block of the table is gathered from the devices that hold it when its turn comes, and its gradient is summed
where it lives: neither the whole table nor all logits ever exist on one device.

Letters: R row, T token, G gathered target, D embed, V vocab, B block of the vocabulary, N used targets of a device (all
of its rows' in one list, padded to whole tiles), n tile of them.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

# Finite, so that a block before the first one of a running maximum gives exact zeros and no NaN.
LEAST = float(jnp.finfo(jnp.float32).min)


@dataclasses.dataclass(frozen=True)
class HeadShards:
    """The mesh, and its axes that split rows, their targets, the table's vocab and its embed dim.

    Axes that split the embed dim split rows or targets too.
    """

    mesh: jax.sharding.Mesh
    rows: tuple[str, ...]
    targets: tuple[str, ...]
    vocab: tuple[str, ...]
    embed: tuple[str, ...]

    @property
    def listed(self) -> tuple[str, ...]:
        """The axes that split the list of all rows' targets."""
        return (*self.rows, *self.targets)

    @property
    def parts(self) -> int:
        """The number of parts that all logits are split into."""
        return math.prod(self.mesh.shape[axis] for axis in (*self.listed, *self.vocab))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Projection:
    """How the vocabulary projection is computed.

    Args:
        targets: the most of a tile.
        fit: the step of sizes that a tile may have, to hold the used targets only; 0: all have the same size.
        vocab: the most token ids of a tile.
        kept_bytes: if all logits of one device take no more than this, they are kept for the backward pass.
        softcap: bends logits smoothly into (-softcap, softcap); None leaves them.
        shards: None on one device.
    """

    targets: int
    vocab: int
    kept_bytes: int
    fit: int = 0
    softcap: float | None = None
    shards: HeadShards | None = None


def softcapped(logits: jax.Array, softcap: float | None) -> jax.Array:
    """Returns logits bent smoothly into (-softcap, softcap); None leaves them."""
    return logits if softcap is None else softcap * jnp.tanh(logits / softcap)


def gather_sources(hidden_RTD: jax.Array, source_RG: jax.Array) -> jax.Array:
    """Returns the hidden states [R, G, D] that predict the targets."""
    return jnp.take_along_axis(hidden_RTD, source_RG[:, :, None], axis=1)


def linear_logp(
    hidden_RGD: jax.Array, table_VD: jax.Array, target_RG: jax.Array, used_RG: jax.Array, projection: Projection
) -> tuple[jax.Array, jax.Array]:
    """Returns log softmax(hidden @ table.T)[target] and that softmax's entropy (nats), float32 [R, G].

    Both are 0 where `used_RG` is False, and cost nothing there. Products of the inputs (the table in the hidden states'
    dtype) accumulate in float32 and log-sum-exp is float32: preference losses subtract sums over hundreds of tokens.
    The entropy has no gradient.
    """
    found: tuple[jax.Array, jax.Array] = _linear_logp(projection, hidden_RGD, table_VD, target_RG, used_RG)
    return found[0], jax.lax.stop_gradient(found[1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _linear_logp(projection: Projection, hidden_RGD, table_VD, target_RG, used_RG):
    return _forward(projection, False, hidden_RGD, table_VD, target_RG, used_RG)[:2]


def _linear_logp_fwd(projection: Projection, *primals):
    arrays = tuple(primal.value for primal in primals)
    logp, entropy, lse, kept = _forward(projection, keeps_logits(projection, arrays[3].size * len(arrays[1])), *arrays)
    # Whether the table is trained (it is not under adapters) is told by a tree's structure: residuals cannot be bools.
    return (logp, entropy), (*arrays, lse, kept, () if primals[1].perturbed else None)


def _linear_logp_bwd(projection: Projection, residuals, cotangents):
    *arrays, is_trained = residuals
    if isinstance(cotangents[0], jax.custom_derivatives.SymbolicZero):
        return jnp.zeros_like(arrays[0]), jnp.zeros_like(arrays[1]), None, None
    return *_backward(projection, is_trained is not None, *arrays, cotangents[0]), None, None


_linear_logp.defvjp(_linear_logp_fwd, _linear_logp_bwd, symbolic_zeros=True)


def _forward(projection: Projection, keeps: bool, *arrays: jax.Array):
    """Returns log-probs, entropies and log-sum-exps [R, G], and all logits [blocks, N, B] or None."""
    on_device = functools.partial(_forward_on_device, projection, keeps)
    row, kept, table = _specs(projection.shards)
    outs = row, row, row, kept if keeps else None
    return _on_shards(on_device, projection.shards, (row, table, row, row), outs)(*arrays)


def _backward(projection: Projection, is_trained: bool, *arrays: Any):
    """Returns the gradients of the hidden states and the table (zeros if it is not trained)."""
    on_device = functools.partial(_backward_on_device, projection, is_trained)
    row, kept, table = _specs(projection.shards)
    return _on_shards(on_device, projection.shards, (row, table, row, row, row, kept, row), (row, table))(*arrays)


def _specs(shards: HeadShards | None) -> tuple[Any, Any, Any]:
    """Returns the specs of arrays [R, G, ...], of kept logits [blocks, N, B] and of the table."""
    if shards is None:
        return None, None, None
    rows, targets, listed, vocab, embed = (
        axes or None for axes in (shards.rows, shards.targets, shards.listed, shards.vocab, shards.embed)
    )
    return PartitionSpec(rows, targets), PartitionSpec(vocab, listed), PartitionSpec(vocab, embed)


def _on_shards(function: Callable[..., Any], shards: HeadShards | None, ins: tuple, outs: tuple) -> Callable[..., Any]:
    if shards is None:
        return function
    return jax.shard_map(function, mesh=shards.mesh, in_specs=ins, out_specs=outs, check_vma=False)


def _forward_on_device(projection: Projection, keeps: bool, hidden_RGD, table_VD, target_RG, used_RG):
    used = _Used(projection, used_RG)
    blocks = _Blocks(projection, table_VD, hidden_RGD.dtype)
    hidden_ND, target_N = used.listed(hidden_RGD), used.listed(target_RG)

    def walk(tiles: _Tiles) -> tuple:
        def add_block(carry: tuple, number: jax.Array) -> tuple[tuple, None]:
            table_BD, is_new_B, first_id = blocks.table(number), blocks.is_new(number), blocks.first_id(number)

            def add_tile(tile: jax.Array, found: tuple) -> tuple:
                *sums, kept = found
                best, total, weighted, picked = (tiles.cut(x, tile) for x in sums)
                logits = blocks.logits(tiles.cut(hidden_ND, tile), table_BD)
                counted = jnp.where(is_new_B, logits, LEAST)
                new_best = jnp.maximum(best, counted.max(-1))
                shrink, odds = jnp.exp(best - new_best), jnp.exp(counted - new_best[:, None])
                total, weighted = total * shrink + odds.sum(-1), weighted * shrink + (odds * logits).sum(-1)
                picked += _pick(counted, tiles.cut(target_N, tile) - first_id)
                new = zip(sums, (new_best, total, weighted, picked), strict=True)
                kept = tiles.keep(kept, number, logits, tile) if keeps else None
                return *(tiles.paste(x, part, tile) for x, part in new), kept

            return jax.lax.fori_loop(0, tiles.count, add_tile, carry), None

        zeros = jnp.zeros(used.size, jnp.float32)
        kept = jnp.zeros((len(blocks.numbers), used.size, blocks.size), jnp.float32) if keeps else None
        return jax.lax.scan(add_block, (zeros + LEAST, zeros, zeros, zeros, kept), blocks.numbers)[0]

    *sums, kept = used.in_tiles(walk)
    best, total, weighted, picked = (used.unlisted(x) for x in sums)
    if blocks.vocab_axes:
        best, here = jax.lax.pmax(best, blocks.vocab_axes), best
        shrink = jnp.exp(here - best)
        total, weighted, picked = jax.lax.psum((total * shrink, weighted * shrink, picked), blocks.vocab_axes)
    total = jnp.where(used_RG, total, 1)
    lse = best + jnp.log(total)
    return *(jnp.where(used_RG, x, 0) for x in (picked - lse, lse - weighted / total, lse)), kept


def _backward_on_device(
    projection: Projection, is_trained: bool, hidden_RGD, table_VD, target_RG, used_RG, lse_RG, kept, grad_RG
):
    used = _Used(projection, used_RG)
    blocks = _Blocks(projection, table_VD, hidden_RGD.dtype)
    listed = [used.listed(x) for x in (hidden_RGD, target_RG, used_RG, lse_RG, grad_RG)]
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)

    def walk(tiles: _Tiles) -> tuple:
        def add_block(carry: tuple, number: jax.Array) -> tuple[tuple, None]:
            to_hidden, to_table = carry
            table_BD, is_new_B, first_id = blocks.table(number), blocks.is_new(number), blocks.first_id(number)

            def add_tile(tile: jax.Array, carry: tuple) -> tuple:
                to_hidden, to_block = carry
                hidden, target, is_used, lse, grad = (tiles.cut(x, tile) for x in listed)
                logits = blocks.logits(hidden, table_BD) if kept is None else tiles.kept(kept, number, tile)
                is_target = (target - first_id)[:, None] == jnp.arange(blocks.size)
                to_logits = (is_target - jnp.exp(logits - lse[:, None])) * grad[:, None]
                if projection.softcap is not None:
                    to_logits *= 1 - jnp.square(logits / projection.softcap)
                to_logits = jnp.where(is_new_B & is_used[:, None], to_logits, 0).astype(hidden.dtype)
                part = tiles.cut(to_hidden, tile) + product("nv,vd->nd", to_logits, table_BD)
                to_block = to_block + product("nv,nd->vd", to_logits, hidden) if is_trained else None
                return tiles.paste(to_hidden, part, tile), to_block

            to_block = jnp.zeros(table_BD.shape, jnp.float32) if is_trained else None
            to_hidden, to_block = jax.lax.fori_loop(0, tiles.count, add_tile, (to_hidden, to_block))
            return (to_hidden, blocks.add_to_table(to_table, number, to_block) if is_trained else None), None

        to_hidden = jnp.zeros(listed[0].shape, jnp.float32)
        start = to_hidden, jnp.zeros(table_VD.shape, jnp.float32) if is_trained else None
        return jax.lax.scan(add_block, start, blocks.numbers)[0]

    to_hidden, to_table = used.in_tiles(walk)
    to_hidden = used.unlisted(to_hidden).astype(jnp.float32)
    if blocks.vocab_axes:
        to_hidden = jax.lax.psum(to_hidden, blocks.vocab_axes)
    to_table = jnp.zeros_like(table_VD) if to_table is None else blocks.summed(to_table).astype(table_VD.dtype)
    return to_hidden.astype(hidden_RGD.dtype), to_table


@dataclasses.dataclass(frozen=True)
class _Tiles:
    """The first targets of a list [N] in `count` tiles of one `size`."""

    size: int
    count: jax.Array

    def cut(self, x: jax.Array, tile: jax.Array) -> jax.Array:
        """[N, ...] -> [n, ...]"""
        return jax.lax.dynamic_slice_in_dim(x, tile * self.size, self.size)

    def paste(self, x: jax.Array, part: jax.Array, tile: jax.Array) -> jax.Array:
        """Returns x [N, ...] with a tile replaced."""
        return jax.lax.dynamic_update_slice_in_dim(x, part, tile * self.size, axis=0)

    def keep(self, all_logits: jax.Array, block: jax.Array, logits_nB: jax.Array, tile: jax.Array) -> jax.Array:
        """Returns all logits [blocks, N, B] with those of one block and tile."""
        return jax.lax.dynamic_update_slice(all_logits, logits_nB[None], (block, tile * self.size, 0))

    def kept(self, all_logits: jax.Array, block: jax.Array, tile: jax.Array) -> jax.Array:
        """Returns the logits [n, B] of one block and tile."""
        sizes = 1, self.size, all_logits.shape[-1]
        return jax.lax.dynamic_slice(all_logits, (block, tile * self.size, 0), sizes)[0]


class _Used:
    """The used targets of one device's rows as a list [N] in tiles, of which only those that hold any are walked."""

    def __init__(self, projection: Projection, used_RG: jax.Array):
        self._shape, self._used = used_RG.shape, used_RG.sum()
        self._sizes = tile_sizes(projection, used_RG.size)
        most = self._sizes[-1]
        self._count = (self._used + most - 1) // most
        self.size = listed_targets(projection, used_RG.size)
        self._order = jnp.argsort(~used_RG.reshape(-1), stable=True)

    def in_tiles(self, walk: Callable[[_Tiles], Any]) -> Any:
        """Returns what a walk over the used targets returns, in tiles no larger than they need."""
        walks = [functools.partial(walk, _Tiles(size, self._count)) for size in self._sizes]
        if len(walks) == 1:
            return walks[0]()
        mean = (self._used + self._count - 1) // jnp.maximum(self._count, 1)
        return jax.lax.switch(jnp.searchsorted(jnp.array(self._sizes), mean), walks)

    def listed(self, x: jax.Array) -> jax.Array:
        """[R, G, ...] -> [N, ...], used ones first."""
        x = x.reshape(-1, *x.shape[2:])[self._order]
        return jnp.pad(x, [(0, self.size - len(x))] + [(0, 0)] * (x.ndim - 1))

    def unlisted(self, x: jax.Array) -> jax.Array:
        """[N, ...] -> [R, G, ...]"""
        back = jnp.zeros_like(self._order).at[self._order].set(jnp.arange(len(self._order)), unique_indices=True)
        return x[back].reshape(*self._shape, *x.shape[1:])


class _Blocks:
    """The vocabulary on one device, block by block. The last block reaches back over ids that the one before has."""

    def __init__(self, projection: Projection, table_VD: jax.Array, dtype: jnp.dtype):
        shards = projection.shards
        self.listed_axes, self.vocab_axes, self.embed_axes = (
            ((), (), ()) if shards is None else (shards.listed, shards.vocab, shards.embed)
        )
        self._table, self._dtype, self._softcap = table_VD, dtype, projection.softcap
        self._vocab = table_VD.shape[0]
        self.size = block_size(projection.vocab, self._vocab)
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
        block = jax.lax.dynamic_slice_in_dim(self._table, self._start(number), self.size, axis=0).astype(self._dtype)
        return jax.lax.all_gather(block, self.embed_axes, axis=1, tiled=True) if self.embed_axes else block

    def logits(self, hidden_nD: jax.Array, table_BD: jax.Array) -> jax.Array:
        """Returns the logits [n, B], float32."""
        logits = jnp.einsum("nd,vd->nv", hidden_nD, table_BD, preferred_element_type=jnp.float32)
        return softcapped(logits, self._softcap)

    def add_to_table(self, total: jax.Array, number: jax.Array, part: jax.Array) -> jax.Array:
        """Adds the gradient [B, D] of a block to this device's part of the table."""
        if self.embed_axes:
            part = jax.lax.psum_scatter(part, self.embed_axes, scatter_dimension=1, tiled=True)
        start = self._start(number)
        part += jax.lax.dynamic_slice_in_dim(total, start, self.size, axis=0)
        return jax.lax.dynamic_update_slice_in_dim(total, part, start, axis=0)

    def summed(self, total: jax.Array) -> jax.Array:
        """Sums the table's gradient over the rows and targets that `add_to_table` has not summed over."""
        axes = tuple(axis for axis in self.listed_axes if axis not in self.embed_axes)
        return jax.lax.psum(total, axes) if axes else total


def block_size(most: int, vocab: int) -> int:
    """Returns the ids of one block, a multiple of 128 if not all: as many blocks as `most` asks for, as even as can be.

    >>> block_size(2048, 49_152), block_size(32_768, 152_064)
    (2048, 30464)
    """
    blocks = -(-vocab // most)
    return min(-(-vocab // (128 * blocks)) * 128, vocab)


def tile_sizes(projection: Projection, targets: int) -> tuple[int, ...]:
    """Returns the sizes that tiles of the used ones of so many targets may have, the largest one last."""
    most = min(projection.targets, targets)
    # Devices that gather the blocks from each other must walk alike, whatever targets each of them has.
    gathers = projection.shards is not None and bool(projection.shards.embed)
    step = most if gathers or not projection.fit else projection.fit
    return (*range(step, most, step), most)


def walked_targets(projection: Projection, used: int, targets: int) -> int:
    """Returns of how many targets a device computes logits where `used` are: the fewest tiles, all of one size."""
    sizes = tile_sizes(projection, targets)
    count = -(-used // sizes[-1])
    return count * min((size for size in sizes if size * count >= used), default=0)


def listed_targets(projection: Projection, targets: int) -> int:
    """Returns the length of a list of so many targets that tiles of any number of them stay within."""
    most = min(projection.targets, targets)
    ends = {*range(most, targets, most), targets}
    return max(walked_targets(projection, used, targets) for used in ends)


def keeps_logits(projection: Projection, logits: int) -> bool:
    """Whether so many logits, those of all devices and padding included, are kept for the backward pass."""
    return 4 * logits <= projection.kept_bytes * (projection.shards.parts if projection.shards else 1)


def _pick(logits_nB: jax.Array, place_n: jax.Array) -> jax.Array:
    """Returns the logit of each target that lies in this block (and is new), else 0."""
    size = logits_nB.shape[-1]
    found = jnp.take_along_axis(logits_nB, jnp.clip(place_n, 0, size - 1)[:, None], axis=-1)[:, 0]
    return jnp.where((place_n >= 0) & (place_n < size) & (found > LEAST), found, 0)
