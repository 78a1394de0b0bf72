"""One number for the bits of each array, the same on every mesh: what a checkpoint held is what it gives back."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from iterpref_jax.train.layerwise import to_device
from iterpref_jax.train.rounding import mixed, places


def checksums(arrays: dict[str, jax.Array]) -> dict[str, int]:
    """Returns 32 bits for every array, from one pass over it where it lies.

    The bits of each element are hashed together with its place in the whole array, and the hashes are added modulo
    2^32: in any order, so that shards do not matter. A single changed element always changes the sum, because for one
    place the hash is a bijection of the bits; other damage goes unseen once in 2^32.
    """
    return {name: int(value) for name, value in jax.device_get(_sums(arrays)).items()}


def named(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a tree by names such as `params/layers/q_proj/kernel`; fields and keys look alike."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


@jax.jit
def _sums(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: _sum(array, is_layers="layers" in name.split("/")) for name, array in arrays.items()}


def _sum(array: jax.Array, is_layers: bool) -> jax.Array:
    if jax.typeof(array).memory_space != jax.memory.Space.Host or not is_layers:
        return _part(to_device(array), 0)

    # The devices may have no room for all layers of what lies in the host's memory; the rest visits them whole in every
    # update (`layerwise`).
    def add(number: jax.Array, total: jax.Array) -> jax.Array:
        layer = to_device(jax.lax.dynamic_index_in_dim(array, number, keepdims=False))
        return total + _part(layer, number.astype(jnp.uint32) * jnp.uint32(layer.size))

    return jax.lax.fori_loop(0, array.shape[0], add, jnp.uint32(0))


def _part(array: jax.Array, first: jax.Array | int) -> jax.Array:
    """Returns the sum over a part whose first element has place `first` in the whole array."""
    place = places(array.shape) + jnp.asarray(first, jnp.uint32)
    return jnp.sum(mixed(_bits(array) ^ mixed(place)), dtype=jnp.uint32)


def _bits(array: jax.Array) -> jax.Array:
    width = array.dtype.itemsize
    if array.dtype == jnp.bool_ or width > 4:
        raise TypeError(f"{array.dtype} has no checksum")
    kind = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[width]
    return jax.lax.bitcast_convert_type(array, kind).astype(jnp.uint32)
