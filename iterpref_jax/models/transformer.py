"""The decoder: tokens of packed trees in, hidden states out; parameters are a plain nested dict of arrays.

`Transformer` is an NNX module; training holds its parameters as a pure dict and calls `Decoder`, so that jit, optax,
Orbax and the sharding table all see ordinary pytrees.
Letters: R row, T token, D embed, V vocab, L layer.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, traverse_util

from iterpref_jax.errors import UserError, did_you_mean
from iterpref_jax.models.attention import Attention
from iterpref_jax.models.config import ModelConfig
from iterpref_jax.models.layers import Mlp, RMSNorm, param, rotary
from iterpref_jax.ops.tree_attention import IMPLEMENTATIONS
from iterpref_jax.parallel.rules import Placement

Params = dict[str, Any]

REMAT_POLICIES = {"none": None, "full": jax.checkpoint_policies.nothing_saveable}


class DecoderLayer(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype):
        self.attention_norm = RMSNorm(config, dtype=dtype)
        self.attention = Attention(config, rngs=rngs, dtype=dtype)
        self.mlp_norm = RMSNorm(config, dtype=dtype)
        self.mlp = Mlp(config, rngs=rngs, dtype=dtype)

    def __call__(self, x_RTD, *attention_inputs) -> jax.Array:
        x_RTD = x_RTD + self.attention(self.attention_norm(x_RTD), *attention_inputs)
        return x_RTD + self.mlp(self.mlp_norm(x_RTD))


class Transformer(nnx.Module):
    """Embedding, L equal layers stacked on a leading dim, final norm and (tied or own) vocabulary head."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype):
        vocab = (config.vocab_size, config.hidden_size)
        self.embedding = param(rngs, config, vocab, ("vocab", "embed"), dtype)
        make_layers = nnx.vmap(lambda keys: DecoderLayer(config, rngs=keys, dtype=dtype), in_axes=0, out_axes=0)
        self.layers = make_layers(rngs.split(config.num_hidden_layers))
        self.norm = RMSNorm(config, dtype=dtype)
        if not config.tie_word_embeddings:
            self.head = param(rngs, config, vocab, ("vocab", "embed"), dtype)
        self.config = config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compute:
    """How the forward pass is computed; nothing here changes what it computes beyond rounding."""

    compute_dtype: str
    remat: str
    attention: str

    def __post_init__(self):
        if self.remat not in REMAT_POLICIES:
            hint = did_you_mean(self.remat, REMAT_POLICIES)
            raise UserError(f"model.compute.remat must be one of {', '.join(REMAT_POLICIES)}, not {self.remat!r}{hint}")
        if self.attention not in ("auto", *IMPLEMENTATIONS):
            hint = did_you_mean(self.attention, IMPLEMENTATIONS)
            known = ", ".join(("auto", *IMPLEMENTATIONS))
            raise UserError(f"model.compute.attention must be one of {known}, not {self.attention!r}{hint}")
        if self.compute_dtype not in ("float32", "bfloat16"):
            raise UserError(f"model.compute.compute_dtype must be float32 or bfloat16, not {self.compute_dtype!r}")


@dataclasses.dataclass(frozen=True)
class Decoder:
    """Pure functions of (params, inputs) for one model shape."""

    config: ModelConfig
    compute: Compute
    placement: Placement | None = None

    def hidden(self, params: Params, tokens_RT, depth_RT, visible_until_RT) -> jax.Array:
        """Returns the final hidden states [R, T, D] (after the last norm) in the compute dtype."""
        return self._run(params, tokens_RT, depth_RT, visible_until_RT)[0]

    def layer_states(self, params: Params, tokens_RT, depth_RT, visible_until_RT) -> jax.Array:
        """Returns [L + 1, R, T, D]: the input of every layer, then the final states, in `transformers`' order."""
        final, inputs = self._run(params, tokens_RT, depth_RT, visible_until_RT, keep=True)
        return jnp.concatenate([inputs, final[None]])

    def head(self, params: Params) -> jax.Array:
        """Returns the vocabulary projection [V, D] in the compute dtype."""
        return self._vocab_table(params["embedding"] if self.config.tie_word_embeddings else params["head"])

    def logits(self, params: Params, hidden_RTD: jax.Array) -> jax.Array:
        """Returns float32 logits [R, T, V] of all positions; training uses `ops.linear_logp` instead."""
        return jnp.einsum("rtd,vd->rtv", hidden_RTD, self.head(params), preferred_element_type=jnp.float32)

    def _run(self, params, tokens_RT, depth_RT, visible_until_RT, keep: bool = False) -> tuple[jax.Array, Any]:
        model = _merge(self.config, params)
        x = self._vocab_table(model.embedding[...])[tokens_RT]
        cos, sin = rotary(depth_RT, self.config)
        layer_graph, stacked = nnx.split(model.layers)
        implementation = None if self.compute.attention == "auto" else self.compute.attention

        def layer(x, weights):
            out = nnx.merge(layer_graph, weights)(self._pin(x), cos, sin, depth_RT, visible_until_RT, implementation)
            return out, (x if keep else None)

        if self.compute.remat != "none":
            layer = jax.checkpoint(layer, policy=REMAT_POLICIES[self.compute.remat], prevent_cse=False)
        x, inputs = jax.lax.scan(layer, x, stacked)
        return model.norm(self._pin(x)), inputs

    def _vocab_table(self, table_VD: jax.Array) -> jax.Array:
        # Gathered over fsdp here, once, as every weight is: look-ups and logits by a table sharded over embed would
        # have to reshard whole activations.
        table_VD = table_VD.astype(self.compute.compute_dtype)
        if self.placement is None:
            return table_VD
        return self.placement.constrain(table_VD, ("vocab", "activation_embed"))

    def _pin(self, x_RTD: jax.Array) -> jax.Array:
        # Without the pin GSPMD may shard activations like the fsdp-sharded weights and exchange them instead.
        if self.placement is None:
            return x_RTD
        return self.placement.constrain(x_RTD, ("row", "token", "activation_embed"))


def init_params(config: ModelConfig, seed: int, dtype: str, placement: Placement | None = None) -> Params:
    """Returns freshly initialised parameters, each made in its own shards."""
    make = functools.partial(_make_params, config, dtype)
    shardings = None if placement is None else param_shardings(config, dtype, placement)
    return jax.jit(make, out_shardings=shardings)(jax.random.key(seed))


def abstract_params(config: ModelConfig, dtype: str) -> Params:
    """Returns the parameters as `jax.ShapeDtypeStruct`s."""
    return jax.eval_shape(functools.partial(_make_params, config, dtype), jax.random.key(0))


def param_dims(config: ModelConfig) -> Params:
    """Returns the names of every parameter's dims (`Dims`), in the structure of the parameters."""

    def dims(path: Any, variable: Any) -> Dims:
        stacked = ("layer",) if path[0] == "layers" else ()
        return Dims(stacked + variable.get_metadata("dims"))

    flat = nnx.to_flat_state(_graph(config)[1])
    return traverse_util.unflatten_dict({path: dims(path, variable) for path, variable in flat})


def param_shardings(config: ModelConfig, dtype: str, placement: Placement) -> Params:
    """Returns the sharding of every parameter under the rules table."""
    shapes = abstract_params(config, dtype)
    return jax.tree.map(lambda shape, dims: placement.sharding(dims.names, shape.shape), shapes, param_dims(config))


@dataclasses.dataclass(frozen=True)
class Dims:
    """The names of one array's dims (a leaf of a pytree, which a bare tuple would not be)."""

    names: tuple[str, ...]


def _make_params(config: ModelConfig, dtype: str, key: jax.Array) -> Params:
    return nnx.to_pure_dict(nnx.state(Transformer(config, rngs=nnx.Rngs(key), dtype=jnp.dtype(dtype)), nnx.Param))


@functools.cache
def _graph(config: ModelConfig) -> tuple[nnx.GraphDef, nnx.State]:
    return nnx.split(nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0), dtype=jnp.float32)))


def _merge(config: ModelConfig, params: Params) -> Transformer:
    graph, abstract = _graph(config)
    state = jax.tree.map(lambda leaf: leaf, abstract)
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)
