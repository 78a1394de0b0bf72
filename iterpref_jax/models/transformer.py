"""The decoder's modules and their parameters, a plain nested dict of arrays.

`Transformer` is an NNX module that defines shapes, dims and initial values; everything else holds its parameters as a
pure dict, so that jit, optax, Orbax and the sharding table all see ordinary pytrees.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, traverse_util

from iterpref_jax.models.attention import Attend, Attention
from iterpref_jax.models.config import ModelConfig
from iterpref_jax.models.experts import Experts
from iterpref_jax.models.layers import Linear, Maker, Mlp, Norm
from iterpref_jax.models.lora import NO_LORA, Lora, adapters_of
from iterpref_jax.parallel.rules import Placement

Params = dict[str, Any]


class DecoderLayer(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); with `post_norms` what is added is normed as well."""

    def __init__(self, make: Maker):
        self.attention_norm = Norm(make)
        self.attention = Attention(make)
        self.mlp_norm = Norm(make)
        self.mlp = Experts(make) if make.config.mlp == "experts" else Mlp(make)
        self.has_post_norms = make.config.post_norms
        if self.has_post_norms:
            self.attention_post_norm, self.mlp_post_norm = Norm(make), Norm(make)

    def __call__(
        self, x_RTD: jax.Array, cos: jax.Array, sin: jax.Array, attend: Attend, placement: Placement | None
    ) -> tuple[jax.Array, Any, jax.Array | None]:
        """Returns the outputs, what `attend` keeps, and the router's logits [R, T, E] of a mixture of experts."""
        attended, kept = self.attention(self.attention_norm(x_RTD), cos, sin, attend)
        x_RTD = x_RTD + (self.attention_post_norm(attended) if self.has_post_norms else attended)
        out, routing = self.mlp(self.mlp_norm(x_RTD), placement)
        return x_RTD + (self.mlp_post_norm(out) if self.has_post_norms else out), kept, routing


class Transformer(nnx.Module):
    """Embedding, L layers of one structure stacked on a leading dim, final norm and (tied or own) vocabulary head."""

    def __init__(self, config: ModelConfig, lora: Lora, *, rngs: nnx.Rngs, dtype: jnp.dtype):
        make = Maker(config, lora, rngs, dtype)
        self.embedding = make.normal("vocab", "embed")
        make_layers = nnx.vmap(lambda keys: DecoderLayer(dataclasses.replace(make, rngs=keys)), in_axes=0, out_axes=0)
        self.layers = make_layers(rngs.split(config.num_hidden_layers))
        self.norm = Norm(make)
        if not config.tie_word_embeddings:
            self.head = make.normal("vocab", "embed")


@dataclasses.dataclass(frozen=True)
class Dims:
    """The names of one array's dims (a leaf of a pytree, which a bare tuple would not be)."""

    names: tuple[str, ...]


def init_params(
    config: ModelConfig, seed: int, dtype: str, placement: Placement | None = None, lora: Lora = NO_LORA
) -> Params:
    """Returns freshly initialised parameters, each made in its own shards."""
    make = functools.partial(_make_params, config, lora, dtype)
    shardings = None if placement is None else param_shardings(config, dtype, placement, lora)
    return jax.jit(make, out_shardings=shardings)(jax.random.key(seed))


def init_adapters(config: ModelConfig, seed: int, placement: Placement | None, lora: Lora) -> Params:
    """Returns fresh adapters alone, float32: A random, B zero, so that they change nothing yet."""

    def make(key: jax.Array) -> Params:
        return adapters_of(_make_params(config, lora, "float32", key))

    shardings = None if placement is None else adapters_of(param_shardings(config, "float32", placement, lora))
    return jax.jit(make, out_shardings=shardings)(jax.random.key(seed))


def abstract_params(config: ModelConfig, dtype: str, lora: Lora = NO_LORA) -> Params:
    """Returns the parameters as `jax.ShapeDtypeStruct`s."""
    return jax.eval_shape(functools.partial(_make_params, config, lora, dtype), jax.random.key(0))


def param_dims(config: ModelConfig, lora: Lora = NO_LORA) -> Params:
    """Returns the names of every parameter's dims (`Dims`), in the structure of the parameters."""

    def dims(path: Any, variable: Any) -> Dims:
        stacked = ("layer",) if path[0] == "layers" else ()
        return Dims(stacked + variable.get_metadata("dims"))

    flat = nnx.to_flat_state(_graph(config, lora)[1])
    return traverse_util.unflatten_dict({path: dims(path, variable) for path, variable in flat})


def param_shardings(config: ModelConfig, dtype: str, placement: Placement, lora: Lora = NO_LORA) -> Params:
    """Returns the sharding of every parameter under the rules table."""
    shapes, dims = abstract_params(config, dtype, lora), param_dims(config, lora)
    return jax.tree.map(lambda shape, dims: placement.sharding(dims.names, shape.shape), shapes, dims)


def is_norm(path: Sequence[str]) -> bool:
    """Whether the parameter at a path is a norm's: those multiply in float32, whatever dtype computes the rest."""
    return any("norm" in key for key in path)


def module_of(config: ModelConfig, lora: Lora, params: Params) -> Transformer:
    """Returns the module that holds these parameters."""
    definition, abstract = _graph(config, lora)
    state = jax.tree.map(lambda leaf: leaf, abstract)
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(definition, state)


@functools.cache
def linears(config: ModelConfig, lora: Lora) -> dict[tuple[str, ...], Linear]:
    """Returns every `Linear` of the module by the path of its parameters (its arrays are abstract)."""
    modules = nnx.iter_modules(nnx.merge(*_graph(config, lora)))
    return {tuple(map(str, path)): module for path, module in modules if isinstance(module, Linear)}


@functools.cache
def graph_of(config: ModelConfig, lora: Lora, part: str) -> nnx.GraphDef:
    """Returns the structure of one part of the module, such as "layers"."""
    return nnx.split(getattr(nnx.merge(*_graph(config, lora)), part))[0]


@functools.cache
def _graph(config: ModelConfig, lora: Lora) -> tuple[nnx.GraphDef, nnx.State]:
    return nnx.split(nnx.eval_shape(lambda: Transformer(config, lora, rngs=nnx.Rngs(0), dtype=jnp.dtype("float32"))))


def _make_params(config: ModelConfig, lora: Lora, dtype: str, key: jax.Array) -> Params:
    model = Transformer(config, lora, rngs=nnx.Rngs(key), dtype=jnp.dtype(dtype))
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))
