"""What each device of a mesh does of the forward pass: its tokens, its heads within attention, its targets.

The tokens of a row may be split (context parallel). All parts of a layer but attention treat tokens one by one;
attention needs whole rows, so there devices exchange tokens for heads and back (Ulysses, arXiv 2309.14509).
Letters: R row, T token, G gathered target, D embed, V vocab, N query heads, K key/value heads, H head dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from iterpref_jax.errors import UserError
from iterpref_jax.models.config import ModelConfig
from iterpref_jax.models.layers import lookup
from iterpref_jax.models.remat import REMATS
from iterpref_jax.ops.kept import MLP
from iterpref_jax.ops.linear_logp import gather_sources
from iterpref_jax.parallel.collectives import place_along, summed_apart, swapped
from iterpref_jax.parallel.rules import Placement

ROW_DIMS = ("row", "token_share", "activation_embed")


def check_model(config: ModelConfig, remat: str, placement: Placement) -> None:
    """Refuses a mesh over which this model cannot be spread.

    Raises:
        UserError: experts or attention heads that the mesh does not split evenly, no experts where it splits them, or
            a `remat` (of `REMATS`) that keeps what is always made again there.
    """
    experts, parts, policy = config.num_experts, placement.parts("expert"), REMATS[remat]
    if parts > 1 and policy is not None and MLP in policy.keeps:
        raise UserError(
            f"model.compute.remat = {remat!r} has no effect on experts that mesh.expert splits: their products are "
            "always made again; take one without mlp"
        )
    if parts > 1 and not experts:
        raise UserError(
            f"mesh.expert = {parts} has no effect on {config.model_type}, which has no experts; set it to 1 and give "
            "its devices to mesh.fsdp"
        )
    if parts > 1 and experts % parts:
        raise UserError(
            f"mesh.expert is {parts}, but the model has {experts} experts: set it to a divisor of that, at most "
            f"{_largest_divisor(experts, parts)} here"
        )
    sequence, heads = placement.parts("token_share"), config.num_attention_heads
    tensor = placement.parts("head_share") // sequence
    if sequence > 1 and heads % (sequence * tensor):
        # One that divides the devices too.
        fits = math.gcd(heads // tensor, sequence) if heads % tensor == 0 else 0
        mend = f"the largest mesh.sequence that fits is {fits}" if fits else f"{heads} is no multiple of {tensor}"
        raise UserError(
            f"mesh.sequence x mesh.tensor is {sequence} x {tensor}, but the model has {heads} attention heads, which "
            f"are split over both within attention: {mend}"
        )


def check_tokens(tokens: int, placement: Placement) -> None:
    """Refuses rows whose tokens the mesh does not split evenly.

    Raises:
        UserError: it names the next size that fits.
    """
    parts = placement.parts("token_share")
    if tokens % parts:
        raise UserError(
            f"rows.tokens is {tokens}, but mesh.sequence splits a row's tokens {parts} ways; make it "
            f"{-(-tokens // parts) * parts}"
        )


def attended(attention: Callable[..., jax.Array], placement: Placement, query, key, value, until_RT, depth_RT):
    """Runs attention once a device, on its rows and heads: the partitioner cannot look into a kernel."""
    tokens, heads = query.shape[1:3]
    axes = placement.axes("token_share", tokens)
    # Query heads may split further than key/value heads do; each device then needs its own copy of the right one.
    kv_heads = key.shape[2]
    copies = math.lcm(kv_heads, placement.shards("head_share" if axes else "heads", heads)) // kv_heads
    key, value = (jnp.repeat(array, copies, axis=2) for array in (key, value))

    def on_device(*shards: jax.Array) -> jax.Array:
        *columns, until, depth = shards
        out = attention(*(swapped(x, axes, whole=1, split=2) for x in columns), until, depth)
        return swapped(out, axes, whole=2, split=1)

    dims = [("row", "token_share", name, "head_dim") for name in ("heads", "kv_heads", "kv_heads")]
    dims += [("row", "token")] * 2
    return placement.map_shards(on_device, (query, key, value, until_RT, depth_RT), dims)


def looked_up(placement: Placement, table_VD: jax.Array, tokens_RT: jax.Array, dtype: str) -> jax.Array:
    """Returns the embeddings [R, T, D] of the tokens in `dtype`.

    Every device looks its replica's tokens up in its part of the table: activations are exchanged, never the table or
    its gradient, which are far larger.
    """
    tokens_RT = placement.constrain(tokens_RT, ("replica_row", "token"))
    x_RTD = placement.constrain(lookup(table_VD, tokens_RT).astype(dtype), ("replica_row", "token", "embed"))
    # Dim by dim, so that each exchange is one all-to-all: first parts of D for tokens, then the others for rows.
    x_RTD = placement.constrain(x_RTD, ("replica_row", "token_share", "embed"))
    return placement.constrain(x_RTD, ROW_DIMS)


def dealt(placement: Placement | None, array_RG: jax.Array) -> jax.Array:
    """Returns the targets in the order of the devices that share them: dealt like cards, for the used ones come first.

    G becomes a multiple of their number, padded with zeros.
    """
    parts = placement.parts("target_share") if placement else 1
    padded_RG = jnp.pad(array_RG, [(0, 0), (0, -array_RG.shape[1] % parts)])
    return padded_RG.reshape(len(array_RG), -1, parts).swapaxes(1, 2).reshape(padded_RG.shape)


def undealt(placement: Placement | None, array_RG: jax.Array, targets: int) -> jax.Array:
    """Returns values of dealt targets in the order in which they were before, without the padding."""
    parts = placement.parts("target_share") if placement else 1
    return array_RG.reshape(len(array_RG), parts, -1).swapaxes(1, 2).reshape(array_RG.shape)[:, :targets]


def sources(placement: Placement | None, hidden_RTD: jax.Array, source_RG: jax.Array) -> jax.Array:
    """Returns the hidden states [R, G, D] of dealt targets, each on the device that has the target.

    A device picks those that it has itself, for all; the others' are zeros, so that the sum is the pick.
    """
    axes = placement.axes("token_share", hidden_RTD.shape[1]) if placement else ()
    if placement is None or not axes:
        return gather_sources(hidden_RTD, source_RG)

    def on_device(hidden: jax.Array, source: jax.Array) -> jax.Array:
        tokens = hidden.shape[1]
        place = source - place_along(axes) * tokens
        is_here = (place >= 0) & (place < tokens)
        picked = jnp.take_along_axis(hidden, jnp.clip(place, 0, tokens - 1)[:, :, None], axis=1)
        return summed_apart(jnp.where(is_here[:, :, None], picked, 0), axes, 1)

    return placement.map_shards(on_device, (hidden_RTD, source_RG), [ROW_DIMS, ("row", "target")])


def _largest_divisor(size: int, below: int) -> int:
    return max(part for part in range(1, below) if size % part == 0)
