"""Where gradients of layers go: into arrays beside the weights, one layer at a time.

A *sink* is an argument that nothing reads and whose gradient is its weight's, in the sink's own dtype. The gradient of
a stack of layers is thus added to a sum that exists already (`train.gradients`), instead of being made whole first.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, traverse_util


def drained(weights: nnx.State, sinks: dict[str, Any] | None) -> nnx.State:
    """Returns the same weights of one layer, with gradients that go to `sinks` (of some of the leaves) alone."""
    if sinks is None:
        return weights
    flat = traverse_util.flatten_dict(nnx.to_pure_dict(weights))
    flat |= {path: _drained(flat[path], sink) for path, sink in traverse_util.flatten_dict(sinks).items()}
    state = jax.tree.map(lambda leaf: leaf, weights)
    nnx.replace_by_pure_dict(state, traverse_util.unflatten_dict(flat))
    return state


@jax.custom_vjp
def _drained(weight: jax.Array, sink: jax.Array) -> jax.Array:
    return weight


def _forward(weight: jax.Array, sink: jax.Array) -> tuple[jax.Array, jax.Array]:
    # A residual must be an array; this one only carries the dtype.
    return weight, jnp.zeros((0,), sink.dtype)


def _backward(dtype_of: jax.Array, grad: jax.Array) -> tuple[None, jax.Array]:
    return None, grad.astype(dtype_of.dtype)


_drained.defvjp(_forward, _backward)
