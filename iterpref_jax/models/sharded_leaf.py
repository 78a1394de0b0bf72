"""One leaf of the parameters, made in the shards of its devices out of its stored tensors, a block at a time.

Host memory beside the shards stays at a few blocks, whatever the size of leaf and tensors: no stack and no tensor is
ever whole on the host. "Stored dims" are the leaf's dims in the order in which the data lie: the stack dims (one tensor
each), then the dims of one tensor by falling stride.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from iterpref_jax.models.blocks import contiguous, equal_blocks
from iterpref_jax.models.weights import View

Slices = tuple[slice, ...]


class Tensor(Protocol):
    """A stored tensor: its shape, and ranges of its elements in C order."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def elements(self, begin: int, end: int) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class StoredLeaf:
    """The stored tensors of one leaf by their place in the stack, and how the dims of each become ours.

    `dims` are the stored dims of one tensor; dim i of ours, behind the stack, is `dims[order[i]]`.
    """

    tensors: Mapping[tuple[int, ...], Tensor]
    stack: tuple[int, ...]
    dims: tuple[int, ...]
    order: tuple[int, ...]

    @classmethod
    def of(cls, tensors: Sequence[Tensor], stack: tuple[int, ...], to_ours: View) -> StoredLeaf:
        """`tensors` are in C order over the `stack` sizes (one tensor where it is empty)."""
        # Only the strides of the view are looked at: bytes that are never touched cost no memory.
        ours = to_ours(np.empty(tensors[0].shape, np.int8))
        by_stride = np.argsort([-step for step in ours.strides], kind="stable")
        dims = tuple(ours.shape[i] for i in by_stride)
        for place, i in enumerate(by_stride):
            if ours.shape[i] > 1 and ours.strides[i] != math.prod(dims[place + 1 :]):
                raise ValueError(f"to_ours of a tensor of shape {tensors[0].shape} is not a view that reorders dims")
        places = itertools.product(*map(range, stack))
        order = tuple(int(i) for i in np.argsort(by_stride))
        return cls(dict(zip(places, tensors, strict=True)), stack, dims, order)

    def stored(self, ours: Sequence[Any]) -> tuple[Any, ...]:
        """Reorders one value for each of our dims to the stored dims."""
        depth = len(self.stack)
        return (*ours[:depth], *(ours[depth + self.order.index(i)] for i in range(len(self.order))))

    def ours(self, stored: Sequence[Any]) -> tuple[Any, ...]:
        """Reorders one value for each stored dim to our dims."""
        depth = len(self.stack)
        return (*stored[:depth], *(stored[depth + i] for i in self.order))

    def read(self, region: Slices) -> np.ndarray:
        """Returns a region (slices of the stored dims) as a contiguous array, its dims ours, in the stored dtype."""
        depth = len(self.stack)
        places = itertools.product(*(range(part.start, part.stop) for part in region[:depth]))
        parts = [self._read_one(self.tensors[place], region[depth:]) for place in places]
        whole = parts[0] if len(parts) == 1 else np.stack(parts)
        return whole.reshape(*(part.stop - part.start for part in region[:depth]), *parts[0].shape)

    def _read_one(self, tensor: Tensor, region: Slices) -> np.ndarray:
        # One run of elements: single indices of the first dims, then a range of rows, sliced further inside.
        single = (part.stop - part.start == 1 for part in region[:-1])
        axis = sum(itertools.takewhile(bool, single))
        steps = [math.prod(self.dims[i + 1 :]) for i in range(axis + 1)]
        begin = sum(part.start * step for part, step in zip(region, steps, strict=False))
        end = begin + (region[axis].stop - region[axis].start) * steps[axis]
        rows = tensor.elements(begin, end).reshape(-1, *self.dims[axis + 1 :])
        return contiguous(rows[(None,) * axis + (slice(None), *region[axis + 1 :])].transpose(self.order))


@dataclasses.dataclass(frozen=True)
class _Shards:
    """Where the shards of this host begin (in our dims), the shape of one, and how many there are along each dim."""

    sharding: Sharding
    starts: Mapping[Any, tuple[int, ...]]
    shape: tuple[int, ...]
    ways: tuple[int, ...]

    @classmethod
    def of(cls, shape: tuple[int, ...], sharding: Sharding) -> _Shards:
        indices = sharding.addressable_devices_indices_map(shape).items()
        starts = {device: tuple(part.start or 0 for part in index or ()) for device, index in indices}
        shard = sharding.shard_shape(shape)
        ways = tuple(whole // part for whole, part in zip(shape, shard, strict=True))
        return cls(sharding, starts, shard, ways)


def make_leaf(leaf: StoredLeaf, dtype: np.dtype, sharding: Sharding, block_bytes: int) -> jax.Array:
    """Returns the leaf in its shards; of the stored tensors only what these shards need is read.

    Host memory beside the shards is a few times `block_bytes`. Values are rounded to nearest, ties to even.
    """
    shape = leaf.ours((*leaf.stack, *leaf.dims))
    shards = _Shards.of(shape, sharding)
    # The same block of all shards of this host is in memory at once, as stored or as float32.
    limit = block_bytes // len(set(shards.starts.values()))
    blocks = list(equal_blocks(leaf.stored(shards.shape), itemsize=4, limit=limit))
    if len(blocks) == 1:
        return _place(leaf, shards, blocks[0], dtype)
    array = jax.jit(functools.partial(jnp.zeros, shape, dtype), out_shardings=sharding)()
    write = _writer(sharding)
    for block in blocks:
        start = np.array(leaf.ours([part.start for part in block]), np.int32)
        array = write(array, _place(leaf, shards, block, dtype), start)
        # Dispatch is asynchronous: without this the blocks of the whole leaf would wait in memory.
        array.block_until_ready()
    return array


def _place(leaf: StoredLeaf, shards: _Shards, block: Slices, dtype: np.dtype) -> jax.Array:
    """Returns the same block of every shard as one array, sharded like the leaf."""
    read: dict[tuple[int, ...], np.ndarray] = {}
    for start in set(shards.starts.values()):
        offsets = leaf.stored(start)
        region = tuple(slice(o + part.start, o + part.stop) for o, part in zip(offsets, block, strict=True))
        read[start] = leaf.read(region).astype(dtype, copy=False)
    arrays = [jax.device_put(read[start], device) for device, start in shards.starts.items()]
    shape = tuple(size * ways for size, ways in zip(arrays[0].shape, shards.ways, strict=True))
    return jax.make_array_from_single_device_arrays(shape, shards.sharding, arrays)


@functools.cache
def _writer(sharding: Sharding) -> Callable[[jax.Array, jax.Array, np.ndarray], jax.Array]:
    """Returns (array, block, start) -> the array with the block in every shard, from `start` on, in its own memory."""

    def write(shard: jax.Array, block: jax.Array, start: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice(shard, block, tuple(start))

    if isinstance(sharding, NamedSharding):
        # One program for all devices: a program for each would be compiled once for each.
        spec = sharding.spec
        specs = (spec, spec, PartitionSpec())
        write = jax.shard_map(write, mesh=sharding.mesh, in_specs=specs, out_specs=spec, check_vma=False)
    on_cpu = next(iter(sharding.device_set)).platform == "cpu"
    # This pass of XLA's CPU compiler would convert the whole array to float32 and back for every bfloat16 block.
    options = {"xla_disable_hlo_passes": "float-normalization-bf16"} if on_cpu else None
    return jax.jit(write, donate_argnums=0, compiler_options=options)
