"""An update whose state lies in the host's memory: one layer at a time visits the devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from iterpref_jax.models.transformer import Params

# (grads, state, params, step, number of the layer) -> (params, state)
Rule = Callable[[Params, Any, Params, jax.Array, Any], tuple[Params, Any]]


def layer_by_layer(update: Rule, grads: Params, state: Any, params: Params, step: jax.Array) -> tuple[Params, Any]:
    """Returns the new parameters and state, as `update` of everything at once would.

    The state's trees of parameters lie in host memory; its counters, which every layer would advance alike, do not.
    """
    layers, rest = (_part(state, is_layers=wanted) for wanted in (True, False))
    new_layers, layers = _each_layer(update, _part(grads, True), layers, _part(params, True), step)
    new_rest, rest = update(_part(grads, False), to_device(rest), _part(params, False), step, 0)
    return new_layers | new_rest, _joined(layers, to_host(rest))


def _each_layer(update: Rule, grads: Params, state: Any, params: Params, step: jax.Array) -> tuple[Params, Any]:
    count = jax.tree.leaves(params)[0].shape[0]

    def one(number: jax.Array, whole: tuple[Params, Any]) -> tuple[Params, Any]:
        params, state = whole
        part = _at(number, (grads, params)), to_device(_at(number, state))
        (grad, param), kept = part
        new_params, new_state = update(grad, kept, param, step, number)
        return _put(number, params, new_params), _put(number, state, to_host(new_state))

    return jax.lax.fori_loop(0, count, one, (params, state))


def to_device(state: Any) -> Any:
    return jax.device_put(state, jax.memory.Space.Device)


def to_host(state: Any) -> Any:
    """Moves all arrays but counters into the host's memory."""
    return jax.tree.map(lambda x: jax.device_put(x, jax.memory.Space.Host) if jnp.ndim(x) else x, state)


def _at(number: jax.Array, tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, number, keepdims=False) if x.ndim else x, tree)


def _put(number: jax.Array, whole: Any, part: Any) -> Any:
    """Writes a layer into a stack of layers; counters stay as they were, for the next layer."""

    def write(x: jax.Array, new: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_index_in_dim(x, new, number, 0) if x.ndim else x

    return jax.tree.map(write, whole, part)


def _part(tree: Any, is_layers: bool) -> Any:
    """Returns a state whose trees of parameters hold only the layers, or only the rest."""

    def select(node: Any) -> Any:
        return {k: v for k, v in node.items() if (k == "layers") == is_layers} if isinstance(node, dict) else node

    return jax.tree.map(select, tree, is_leaf=lambda node: isinstance(node, dict))


def _joined(layers: Any, rest: Any) -> Any:
    """Puts the parts together again; counters are those of the rest, which were advanced."""

    def join(node: Any, other: Any) -> Any:
        return node | other if isinstance(node, dict) else other

    return jax.tree.map(join, layers, rest, is_leaf=lambda node: isinstance(node, dict))
