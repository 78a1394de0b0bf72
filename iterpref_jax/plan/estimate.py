"""A step's memory and time by formula: good enough to choose what is compiled, never reported."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax

from iterpref_jax.models.config import ModelConfig
from iterpref_jax.models.decoder import Decoder
from iterpref_jax.models.remat import REMATS
from iterpref_jax.models.transformer import abstract_params
from iterpref_jax.ops.kept import ATTENTION, MLP, PRODUCTS
from iterpref_jax.parallel.interconnect import Exchange, Interconnect
from iterpref_jax.plan.arithmetic import work
from iterpref_jax.plan.planning import Target
from iterpref_jax.plan.roofline import roofline
from iterpref_jax.plan.workload import Workload
from iterpref_jax.train.compiled import gradient_bytes, state_bytes
from iterpref_jax.train.run import RunSettings

# Bytes of an element in the compute dtype; gradients of weights are exchanged in it too.
_HALF = 2
# Buffers of a layer's width that are there at once within one layer, beside the MLP's.
_WIDTHS = 10


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Bytes and seconds of a step on one device."""

    peak: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class _Sizes:
    """What one device holds of a layer: tokens, and bytes of the activations of one layer by what they are."""

    layer_input: int
    attention: int
    mlp: int
    products: int
    within: int


@dataclasses.dataclass(frozen=True)
class Held:
    """Bytes that a device holds of the state, and of gradients of one microbatch and of several: whatever the rows."""

    state: int
    gradients: int
    summed: int


def held(settings: RunSettings, decoder: Decoder) -> Held:
    """Returns what a device holds on the decoder's mesh."""
    return Held(state_bytes(settings, decoder), *(gradient_bytes(settings, decoder, number) for number in (1, 2)))


def estimate(load: Workload, target: Target, decoder: Decoder, holds: Held) -> Estimate:
    """Returns the estimate of one step on the decoder's mesh, which is that of the settings."""
    settings = load.settings
    sizes = _sizes(load, decoder)
    remat, layers = REMATS[settings.model.compute.remat], decoder.config.num_hidden_layers
    keeps = remat.keeps if remat else ()
    named = {ATTENTION: sizes.attention, MLP: sizes.mlp, PRODUCTS: sizes.products}
    kept = sizes.layer_input + sum(size for name, size in named.items() if name in keeps)
    kept = sizes.within + sizes.attention + sizes.mlp if remat is None else 0 if remat.in_host else kept
    weights = 2 * _HALF * _layer_entries(decoder) // _parts(decoder, "mlp", decoder.config.intermediate_size)
    logits = settings.model.compute.logits_mb << 20
    peak = holds.state + (holds.gradients if load.microbatches == 1 else holds.summed)
    peak += layers * kept + sizes.within + sizes.mlp + weights + logits
    exchanges = _exchanges(load, target, decoder, sizes, remakes=remat is not None)
    roof = roofline(
        target.topology.chip,
        target.efficiency,
        flops=work(load, decoder).executed / len(target.topology.devices),
        hbm_bytes=_traffic(load, decoder, sizes) + 3 * holds.state,
        exchanges=exchanges,
    )
    return Estimate(peak, (roof.seconds + roof.without_overlap) / 2)


def _sizes(load: Workload, decoder: Decoder) -> _Sizes:
    config, placement = decoder.config, decoder.placement
    assert placement is not None
    rows = load.settings.rows.rows_per_microbatch // placement.row_shards()
    tokens = rows * load.caps.tokens // placement.parts("token_share")
    inner = (
        config.intermediate_size * (config.num_experts_per_tok or 1) // _parts(decoder, "mlp", config.intermediate_size)
    )
    heads = config.num_attention_heads * config.head_dim // _parts(decoder, "heads", config.num_attention_heads)
    keys = config.num_key_value_heads * config.head_dim // _parts(decoder, "kv_heads", config.num_key_value_heads)
    width = _HALF * tokens * config.hidden_size
    return _Sizes(
        layer_input=width,
        attention=_HALF * tokens * heads,
        mlp=2 * _HALF * tokens * inner,
        products=_HALF * tokens * (heads + 2 * keys) + width,
        within=_WIDTHS * width,
    )


def _exchanges(load: Workload, target: Target, decoder: Decoder, sizes: _Sizes, *, remakes: bool) -> list[Exchange]:
    """Returns what a step exchanges, dim by dim of the sharding rules."""
    placement, config = decoder.placement, decoder.config
    assert placement is not None
    network = Interconnect(target.topology, placement.mesh)
    again = 1 if remakes else 0
    steps = load.used_microbatches
    a_layer = config.num_hidden_layers * steps
    shared = _HALF * _layer_entries(decoder) // _parts(decoder, "mlp", config.intermediate_size)
    embed = placement.axes("embed", config.hidden_size)
    rows = placement.axes("row", placement.row_shards())
    replicas = tuple(axis for axis in rows if axis not in embed)
    found = [
        # Weights are gathered for each pass, and their gradients scattered.
        ("all-gather", shared, embed, (2 + again) * a_layer),
        ("reduce-scatter", shared, embed, a_layer),
        ("all-reduce", 2 * shared // max(1, placement.shards("embed", config.hidden_size)), replicas, a_layer),
        # Behind attention and behind the MLP, in both passes.
        ("all-reduce", sizes.layer_input, placement.axes("mlp", config.intermediate_size), (4 + 2 * again) * a_layer),
        # Queries, keys, values and what attention returns.
        ("all-to-all", sizes.layer_input, placement.axes("token_share", load.caps.tokens), 4 * (2 + again) * a_layer),
    ]
    if config.num_experts:
        group = placement.axes("expert", config.num_experts)
        size = sizes.layer_input * math.prod(placement.mesh.shape[axis] for axis in group)
        found.append(("all-gather", size, group, 2 * (2 + again) * a_layer))
    return [
        network.exchange(kind, size, network.group_along(axes)).times(count)
        for kind, size, axes, count in found
        if axes
    ]


def _traffic(load: Workload, decoder: Decoder, sizes: _Sizes) -> float:
    """Weights as often as they are used, and each layer's buffers written and read."""
    layers = decoder.config.num_hidden_layers
    weights = 3 * _HALF * _layer_entries(decoder) / _parts(decoder, "mlp", decoder.config.intermediate_size)
    buffers = 2 * 4 * (sizes.within + sizes.mlp)
    return load.used_microbatches * layers * (weights + buffers)


def _layer_entries(decoder: Decoder) -> int:
    return _entries(decoder.config)


@functools.cache
def _entries(config: ModelConfig) -> int:
    """The parameters of one layer."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(abstract_params(config, "float32")["layers"])) // (
        config.num_hidden_layers
    )


def _parts(decoder: Decoder, dim: str, size: int) -> int:
    return decoder.placement.shards(dim, size) if decoder.placement else 1
