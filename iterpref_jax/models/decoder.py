"""Pure functions of (parameters, inputs) for one model shape: training's forward pass, and decoding's with a cache.

Letters: R row, T token, D embed, V vocab, L layer, K key/value heads, H head dim, E expert, B slot, S cache column.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from iterpref_jax.errors import UserError, did_you_mean
from iterpref_jax.models import shares
from iterpref_jax.models.config import LayerKind, ModelConfig
from iterpref_jax.models.layers import lookup
from iterpref_jax.models.lora import NO_LORA, Lora
from iterpref_jax.models.remat import REMATS, rematerialised
from iterpref_jax.models.rope import rotary
from iterpref_jax.models.sinks import drained
from iterpref_jax.models.transformer import Params, module_of
from iterpref_jax.ops.kept import LAYER_INPUT
from iterpref_jax.ops.linear_logp import HeadShards, Projection, linear_logp, softcapped
from iterpref_jax.ops.tree_attention import IMPLEMENTATIONS, choose, tree_attention
from iterpref_jax.parallel.rules import Placement

# The most targets of a tile of logits, the step of its size, and its token ids: on a CPU it stays in cache and is no
# larger than its targets (a few short rows would be a third more work in whole tiles); elsewhere it fills the device.
LOGITS_TILE = {"cpu": (512, 64, 2048)}
LARGE_LOGITS_TILE = (1024, 0, 32_768)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compute:
    """How the forward pass is computed; nothing here changes what it computes beyond rounding."""

    compute_dtype: str
    remat: str
    attention: str
    logits_mb: int

    def __post_init__(self):
        if self.logits_mb < 0:
            raise UserError(f"model.compute.logits_mb must be at least 0, got {self.logits_mb}")
        if self.remat not in REMATS:
            hint = did_you_mean(self.remat, REMATS)
            raise UserError(f"model.compute.remat must be one of {', '.join(REMATS)}, not {self.remat!r}{hint}")
        if self.attention not in ("auto", *IMPLEMENTATIONS):
            hint = did_you_mean(self.attention, IMPLEMENTATIONS)
            known = ", ".join(("auto", *IMPLEMENTATIONS))
            raise UserError(f"model.compute.attention must be one of {known}, not {self.attention!r}{hint}")
        if self.compute_dtype not in ("float32", "bfloat16"):
            raise UserError(f"model.compute.compute_dtype must be float32 or bfloat16, not {self.compute_dtype!r}")


@dataclasses.dataclass(frozen=True)
class LayerOutputs:
    """What the layers give besides the final states: a leading dim L on each, None where it was not asked for."""

    inputs: Any
    routing: Any


@dataclasses.dataclass(frozen=True)
class Decoder:
    """The forward pass of one model shape."""

    config: ModelConfig
    compute: Compute
    placement: Placement | None = None
    lora: Lora = NO_LORA

    def __post_init__(self):
        # Refused here, long before the first step is traced.
        _ = self.attention
        if self.placement is not None:
            shares.check_model(self.config, self.compute.remat, self.placement)

    def hidden(self, params: Params, tokens_RT, depth_RT, visible_until_RT, sinks: Params | None = None) -> jax.Array:
        """Returns the final hidden states [R, T, D] (after the last norm) in the compute dtype.

        `sinks` take the gradients of the layers (`models.sinks`); None leaves them where they belong.
        """
        return self._run(params, tokens_RT, depth_RT, visible_until_RT, sinks)[0]

    def hidden_and_routing(
        self, params: Params, tokens_RT, depth_RT, visible_until_RT, sinks: Params | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the final hidden states and the routers' logits [L, R, T, E] of a mixture of experts."""
        final, outputs = self._run(params, tokens_RT, depth_RT, visible_until_RT, sinks, routing=True)
        return final, outputs.routing

    def layer_states(self, params: Params, tokens_RT, depth_RT, visible_until_RT) -> jax.Array:
        """Returns [L + 1, R, T, D]: the input of every layer, then the final states, in `transformers`' order."""
        final, outputs = self._run(params, tokens_RT, depth_RT, visible_until_RT, inputs=True)
        return jnp.concatenate([outputs.inputs, final[None]])

    def head(self, params: Params) -> jax.Array:
        """Returns the vocabulary projection [V, D] as it is stored."""
        return params["embedding"] if self.config.tie_word_embeddings else params["head"]

    def projection(self, rows: int) -> Projection:
        """Returns how `ops.linear_logp` computes the log-probs of this many rows."""
        config, placement, shards = self.config, self.placement, None
        if placement is not None:
            dims = dict(row=rows, target_share=0, vocab=config.vocab_size, embed=config.hidden_size)
            shards = HeadShards(placement.mesh, *(placement.axes(dim, size) for dim, size in dims.items()))
        targets, fit, vocab = LOGITS_TILE.get(self.platform, LARGE_LOGITS_TILE)
        return Projection(
            targets=targets,
            fit=fit,
            vocab=vocab,
            kept_bytes=self.compute.logits_mb << 20,
            softcap=config.final_logit_softcapping,
            shards=shards,
        )

    def logps(self, params: Params, hidden_RTD, source_RG, target_RG, used_RG) -> tuple[jax.Array, jax.Array]:
        """Returns the targets' log-probs, and the entropies of the distributions that they are scored by [R, G]."""
        placement, targets = self.placement, target_RG.shape[1]
        source_RG, target_RG, used_RG = (shares.dealt(placement, x) for x in (source_RG, target_RG, used_RG))
        hidden_RGD = shares.sources(placement, hidden_RTD, source_RG)
        projection = self.projection(hidden_RGD.shape[0])
        found = linear_logp(hidden_RGD, self.head(params), target_RG, used_RG, projection)
        return shares.undealt(placement, found[0], targets), shares.undealt(placement, found[1], targets)

    def logits(self, params: Params, hidden: jax.Array) -> jax.Array:
        """Returns float32 logits [..., V] of all states [..., D]; training uses `ops.linear_logp` instead."""
        table = self._vocab_table(self.head(params))
        logits = jnp.einsum("...d,vd->...v", hidden, table, preferred_element_type=jnp.float32)
        return softcapped(logits, self.config.final_logit_softcapping)

    def _run(
        self, params: Params, tokens_RT, depth_RT, visible_until_RT, sinks: Params | None = None, **wanted: bool
    ) -> tuple[jax.Array, Any]:
        """Returns the final states and `LayerOutputs`; `wanted` says which of them to collect."""
        model = module_of(self.config, self.lora, params)
        x = self.embed(model.embedding[...], tokens_RT)
        kinds, kind_L = kinds_of_layers(self.config)
        share_RT = self._share(depth_RT, ("row", "token_share"))
        angles = [rotary(share_RT, kind.rope, self.config.head_dim) for kind in kinds]
        cos, sin = (jnp.stack(parts) for parts in zip(*angles, strict=True))
        layer_graph, stacked = nnx.split(model.layers)
        sees = [self.tree_attention_in(kind.window, visible_until_RT, depth_RT) for kind in kinds]

        def layer(x, layer_inputs):
            weights, kind, sink = layer_inputs
            x = checkpoint_name(x, LAYER_INPUT)

            def attend(query, key, value):
                return jax.lax.switch(kind, sees, query, key, value), None

            one = nnx.merge(layer_graph, drained(weights, sink))
            out, _, routing = one(self.pin(x), cos[kind], sin[kind], attend, self.placement)
            found = {"inputs": x, "routing": routing}
            return out, {name: value if wanted.get(name) else None for name, value in found.items()}

        x, outputs = jax.lax.scan(rematerialised(layer, self.compute.remat), x, (stacked, jnp.array(kind_L), sinks))
        return model.norm(self.pin(x)), LayerOutputs(**outputs)

    def tree_attention_in(self, window: int | None, visible_until_RT, depth_RT) -> Callable[..., jax.Array]:
        """Returns attention (query, key, value) -> attended over packed trees, as `Compute` wants it computed."""
        options = dict(scale=self.scale, window=window, implementation=self.attention, platform=self.platform)
        attention = functools.partial(tree_attention, **options)

        def attend(query, key, value) -> jax.Array:
            arrays = query, key, value, visible_until_RT, depth_RT
            return attention(*arrays) if self.placement is None else shares.attended(attention, self.placement, *arrays)

        return attend

    @property
    def attention(self) -> str:
        """The implementation of tree attention."""
        return choose(None if self.compute.attention == "auto" else self.compute.attention, self.platform)

    @property
    def platform(self) -> str:
        """The platform of the devices that this is compiled for."""
        return self.placement.platform if self.placement else jax.default_backend()

    @property
    def scale(self) -> float:
        """What attention scores are multiplied by."""
        return self.config.query_pre_attn_scalar**-0.5

    def embed(self, table_VD: jax.Array, tokens: jax.Array) -> jax.Array:
        """Returns the embeddings of `tokens` in the compute dtype."""
        dtype = self.compute.compute_dtype
        if self.placement is None:
            x = lookup(table_VD, tokens).astype(dtype)
        else:
            x = shares.looked_up(self.placement, table_VD, tokens, dtype)
        # Rounded to the compute dtype before it is used, as in `transformers`.
        return x * jnp.asarray(self.config.hidden_size**0.5, x.dtype) if self.config.scale_embedding else x

    def _vocab_table(self, table_VD: jax.Array) -> jax.Array:
        # Gathered over fsdp here, once, as every weight is: logits by a table sharded over embed would have to reshard
        # whole activations.
        table_VD = table_VD.astype(self.compute.compute_dtype)
        if self.placement is None:
            return table_VD
        return self.placement.constrain(table_VD, ("vocab", "activation_embed"))

    def pin(self, x_RTD: jax.Array) -> jax.Array:
        """Shards activations by rows and tokens."""
        # Without the pin GSPMD may shard activations like the fsdp-sharded weights and exchange them instead.
        return self._share(x_RTD, shares.ROW_DIMS)

    def _share(self, array: jax.Array, dims: tuple[str, ...]) -> jax.Array:
        return array if self.placement is None else self.placement.constrain(array, dims)


def kinds_of_layers(config: ModelConfig) -> tuple[list[LayerKind], list[int]]:
    """Returns the different kinds of layers, and for every layer the number of its kind."""
    kinds = list(dict.fromkeys(config.layer_kinds))
    return kinds, [kinds.index(kind) for kind in config.layer_kinds]
