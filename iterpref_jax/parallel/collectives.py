"""Exchanges between the devices along some mesh axes, within `shard_map`; without axes they do nothing."""

from __future__ import annotations

from typing import Any

import jax

Axes = tuple[str, ...]


def place_along(axes: Axes) -> Any:
    """Returns this device's place along the axes, 0 without any."""
    return jax.lax.axis_index(axes) if axes else 0


def gathered(shard: jax.Array, axes: Axes, dim: int) -> jax.Array:
    """Returns the shards of all devices one behind the other along a dim."""
    return jax.lax.all_gather(shard, axes, axis=dim, tiled=True) if axes else shard


def summed(array: jax.Array, axes: Axes) -> jax.Array:
    """Returns the sum over the devices, on each of them."""
    return jax.lax.psum(array, axes) if axes else array


def summed_apart(array: jax.Array, axes: Axes, dim: int) -> jax.Array:
    """Returns this device's shard, along a dim, of the sum over the devices."""
    return jax.lax.psum_scatter(array, axes, scatter_dimension=dim, tiled=True) if axes else array


def swapped(shard: jax.Array, axes: Axes, *, whole: int, split: int) -> jax.Array:
    """Returns a shard in which dim `whole`, of which each device had a part, is whole, and dim `split` is split."""
    return jax.lax.all_to_all(shard, axes, split_axis=split, concat_axis=whole, tiled=True) if axes else shard
