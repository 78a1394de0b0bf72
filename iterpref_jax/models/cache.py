"""Decoding with a cache of keys and values: the same layers as training, one new token a slot at a time.

A slot is one sequence being written; its token at position i lies in column i of the cache.
Letters: B slot, S cache column, R row, T token, D embed, L layer, K key/value heads, H head dim.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from iterpref_jax.models.decoder import Decoder, kinds_of_layers
from iterpref_jax.models.rope import rotary
from iterpref_jax.models.transformer import Params, graph_of, is_norm, module_of
from iterpref_jax.ops.cached_attention import cached_attention

_COLUMN_DIMS = ("row", "token", "kv_heads", "head_dim")


class LayerCache(NamedTuple):
    """Keys and values of one layer, in the compute dtype."""

    key_BSKH: Any
    value_BSKH: Any


Cache = tuple[LayerCache, ...]


@dataclasses.dataclass(frozen=True)
class CachedDecoder:
    """The forward pass of decoding. Its parameters are `prepare`d ones; every function is pure and can be jitted."""

    decoder: Decoder

    def prepare(self, params: Params, *, donate: bool = False) -> Params:
        """Returns the parameters as decoding wants them: layers apart, weights in the compute dtype. Not for jit.

        One array a layer is read in place, where a slice of stacked layers would be copied for every token. With
        `donate` each of `params` is deleted once it has been replaced, so that no second copy of all of them exists.
        """
        model = module_of(self.decoder.config, self.decoder.lora, params)
        flat, structure = jax.tree_util.tree_flatten_with_path(nnx.split(model.layers)[1])
        stacks = [self._prepared(path, leaf, donate, self.decoder.config.num_hidden_layers) for path, leaf in flat]
        layers = [jax.tree.unflatten(structure, of_layer) for of_layer in zip(*stacks, strict=True)]
        rest = jax.tree_util.tree_map_with_path(
            lambda path, leaf: self._prepared(path, leaf, donate),
            {name: leaf for name, leaf in params.items() if name not in ("layers", "norm")},
        )
        return {**rest, "norm": nnx.split(model.norm)[1], "layers": layers}

    def init_cache(self, slots: int, columns: int) -> Cache:
        """Returns an empty cache; call it under jit, so that each device makes its own part."""
        config = self.decoder.config
        shape = (slots, columns, config.num_key_value_heads, config.head_dim)
        empty = self._pin(jnp.zeros(shape, self.decoder.compute.compute_dtype), _COLUMN_DIMS)
        return tuple(LayerCache(empty, empty) for _ in range(config.num_hidden_layers))

    def prefill(self, params: Params, tokens_RT: jax.Array, length_R: jax.Array) -> tuple[jax.Array, Cache]:
        """Returns the final hidden states [R, T, D] of prompts padded on the right, and their keys and values."""
        rows, tokens = tokens_RT.shape
        depth_RT = jnp.broadcast_to(jnp.arange(tokens), (rows, tokens))
        until_RT = jnp.where(depth_RT < length_R[:, None], length_R[:, None], 0)
        attends = [
            self.decoder.tree_attention_in(kind.window, until_RT, depth_RT)
            for kind in kinds_of_layers(self.decoder.config)[0]
        ]

        def attend(layer: int, kind: int, query, key, value):
            return attends[kind](query, key, value), LayerCache(key, value)

        return self._layers(params, tokens_RT, depth_RT, attend)

    def write(self, cache: Cache, rows: Cache, slot_R: jax.Array) -> Cache:
        """Copies the keys and values of row r into slot `slot_R[r]`; a slot number out of range drops the row."""

        def into(held: jax.Array, new: jax.Array) -> jax.Array:
            return self._pin(held.at[slot_R, : new.shape[1]].set(new, mode="drop"), _COLUMN_DIMS)

        return jax.tree.map(into, cache, rows)

    def decode_step(
        self, params: Params, cache: Cache, token_B: jax.Array, position_B: jax.Array
    ) -> tuple[jax.Array, Cache]:
        """Returns the final hidden states [B, D] of one token a slot, and the cache with its keys and values."""
        kinds, _ = kinds_of_layers(self.decoder.config)

        def put(held: jax.Array, new: jax.Array) -> jax.Array:
            at_position = jax.vmap(lambda columns, one, i: jax.lax.dynamic_update_slice_in_dim(columns, one, i, 0))
            return self._pin(at_position(held, new, position_B), _COLUMN_DIMS)

        def attend(layer: int, kind: int, query, key, value):
            columns = LayerCache(put(cache[layer].key_BSKH, key), put(cache[layer].value_BSKH, value))
            window, scale = kinds[kind].window, self.decoder.scale
            attended = cached_attention(query[:, 0], *columns, position_B, scale=scale, window=window)
            return attended[:, None], columns

        hidden_BTD, cache = self._layers(params, token_B[:, None], position_B[:, None], attend)
        return hidden_BTD[:, 0], cache

    def logits(self, params: Params, hidden: jax.Array) -> jax.Array:
        """Returns float32 logits [..., V] of states [..., D]."""
        return self.decoder.logits(params, hidden)

    def _layers(self, params: Params, tokens_RT, depth_RT, attend) -> tuple[jax.Array, Cache]:
        decoder, kept = self.decoder, []
        kinds, kind_of = kinds_of_layers(decoder.config)
        angles = [rotary(depth_RT, kind.rope, decoder.config.head_dim) for kind in kinds]
        layer_graph = graph_of(decoder.config, decoder.lora, "layers")
        x = decoder.embed(params["embedding"], tokens_RT)
        for layer, (weights, kind) in enumerate(zip(params["layers"], kind_of, strict=True)):
            one = nnx.merge(layer_graph, weights)

            def see(query, key, value, layer=layer, kind=kind):
                return attend(layer, kind, query, key, value)

            x, columns, _ = one(decoder.pin(x), *angles[kind], see, decoder.placement)
            kept.append(columns)
        norm = nnx.merge(graph_of(decoder.config, decoder.lora, "norm"), params["norm"])
        return norm(decoder.pin(x)), tuple(kept)

    def _prepared(self, path: tuple, leaf: jax.Array, donate: bool, layers: int = 0) -> Any:
        """Returns a parameter in its dtype, of stacked layers one array each."""
        is_kept = is_norm([str(getattr(key, "key", "")) for key in path])
        dtype = leaf.dtype if is_kept else jnp.dtype(self.decoder.compute.compute_dtype)
        if not layers and leaf.dtype == dtype:
            return leaf
        made = jax.block_until_ready(_cast(leaf, dtype, layers))
        if donate:
            # Waited for above: what is queued still holds its arguments, and outputs of all would be allocated ahead.
            leaf.delete()
        return made

    def _pin(self, array: jax.Array, dims: tuple[str, ...]) -> jax.Array:
        placement = self.decoder.placement
        return array if placement is None else placement.constrain(array, dims)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _cast(leaf: jax.Array, dtype: jnp.dtype, layers: int) -> Any:
    return [leaf[layer].astype(dtype) for layer in range(layers)] if layers else leaf.astype(dtype)
