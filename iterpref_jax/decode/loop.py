"""What the devices do: prompts into slots of the cache, and a chunk of decoding steps for all slots at once.

Letters: B slot, R row of a prefill, T token, C step of a chunk, S stop token.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from iterpref_jax.decode.request import MAX_STOP_TOKENS
from iterpref_jax.decode.sampling import draw_keys, sample
from iterpref_jax.decode.slots import Running
from iterpref_jax.models.cache import Cache, CachedDecoder
from iterpref_jax.models.transformer import Params


class Rows(NamedTuple):
    """The state of every slot; small, and sent anew with every chunk.

    Attributes:
        token_B: the last token of prompt and completion, not yet in the cache.
        position_B: its place, which is its column in the cache.
        active_B: False where the slot is free: it is computed and ignored.
        drawn_B: tokens of the completion so far, of `limit_B`.
        stop_BS: tokens that end the completion; -1 where there are fewer.
    """

    token_B: Any
    position_B: Any
    active_B: Any
    drawn_B: Any
    limit_B: Any
    seed_B: Any
    temperature_B: Any
    top_k_B: Any
    top_p_B: Any
    stop_BS: Any


def idle_rows(columns: Sequence[int]) -> Rows:
    """Returns the rows of free slots, which write to the given columns, as NumPy arrays to be filled in."""
    zeros, falses = np.zeros(len(columns), np.int32), np.zeros(len(columns), bool)
    return Rows(
        token_B=zeros.copy(),
        position_B=np.array(columns, np.int32),
        active_B=falses,
        drawn_B=zeros.copy(),
        limit_B=zeros.copy(),
        seed_B=zeros.astype(np.uint32),
        temperature_B=zeros.astype(np.float32),
        top_k_B=zeros.copy(),
        top_p_B=zeros.astype(np.float32),
        stop_BS=np.full((len(columns), MAX_STOP_TOKENS), -1, np.int32),
    )


def set_row(rows: Rows, slot: int, running: Running) -> None:
    """Fills in the row of a request that runs."""
    request, stop = running.request, running.transcript.stop_token_ids
    values = dict(
        token_B=running.last_token,
        position_B=running.position,
        active_B=True,
        drawn_B=running.drawn,
        limit_B=request.max_tokens,
        seed_B=request.seed,
        temperature_B=request.temperature,
        top_k_B=request.top_k,
        top_p_B=request.top_p,
    )
    for name, value in values.items():
        getattr(rows, name)[slot] = value
    rows.stop_BS[slot, : len(stop)] = stop


class Chunk(NamedTuple):
    """What a chunk drew: slot b's tokens are the first `drawn_B[b] - rows.drawn_B[b]` of its column."""

    token_CB: Any
    logp_CB: Any
    drawn_B: Any


@functools.partial(jax.jit, static_argnames=("model", "slots", "columns"))
def empty_cache(model: CachedDecoder, slots: int, columns: int) -> Cache:
    """Makes the cache, each device its own part."""
    return model.init_cache(slots, columns)


@functools.partial(jax.jit, static_argnames="model", donate_argnames="cache")
def prefill(model: CachedDecoder, params: Params, cache: Cache, tokens_RT, length_R, slot_R) -> Cache:
    """Computes right-padded prompts and puts each into its slot; a slot beyond the last drops the row."""
    return model.write(cache, model.prefill(params, tokens_RT, length_R)[1], slot_R)


@functools.partial(jax.jit, static_argnames=("model", "columns"), donate_argnames="cache")
def copy(model: CachedDecoder, cache: Cache, source_R, slot_R, *, columns: int) -> Cache:
    """Puts the first columns of the source slots into other slots; a slot beyond the last drops the row."""
    return model.write(cache, jax.tree.map(lambda held: held[source_R, :columns], cache), slot_R)


@functools.partial(jax.jit, static_argnames=("model", "steps"), donate_argnames="cache")
def decode(model: CachedDecoder, params: Params, cache: Cache, rows: Rows, *, steps: int) -> tuple[Cache, Chunk]:
    """Draws up to `steps` tokens for every active slot; ends early when none is active any more."""
    rows = _pin(model, Rows(*map(jnp.asarray, rows)))
    shape = (steps, *rows.token_B.shape)
    drawn = jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32)

    def goes_on(state) -> jax.Array:
        return (state[0] < steps) & state[2].active_B.any()

    def step(state):
        number, cache, rows, token_CB, logp_CB = state
        cache, token_B, logp_B = _draw(model, params, cache, rows)
        rows = _pin(model, _advance(rows, token_B))
        return number + 1, cache, rows, token_CB.at[number].set(token_B), logp_CB.at[number].set(logp_B)

    _, cache, rows, token_CB, logp_CB = jax.lax.while_loop(goes_on, step, (0, cache, rows, *drawn))
    return cache, Chunk(token_CB, logp_CB, rows.drawn_B)


def _draw(model: CachedDecoder, params: Params, cache: Cache, rows: Rows) -> tuple[Cache, jax.Array, jax.Array]:
    hidden_BD, cache = model.decode_step(params, cache, rows.token_B, rows.position_B)
    logits_BV = model.logits(params, hidden_BD)
    key_B = draw_keys(rows.seed_B, rows.drawn_B)
    return cache, *sample(logits_BV, key_B, rows.temperature_B, rows.top_k_B, rows.top_p_B)


def _advance(rows: Rows, token_B: jax.Array) -> Rows:
    """Feeds the drawn token to the slots that are active; the others stay where they are."""
    active_B = rows.active_B
    drawn_B = rows.drawn_B + active_B
    ended_B = (token_B[:, None] == rows.stop_BS).any(-1) | (drawn_B >= rows.limit_B)
    return rows._replace(
        token_B=jnp.where(active_B, token_B, rows.token_B),
        position_B=rows.position_B + active_B,
        active_B=active_B & ~ended_B,
        drawn_B=drawn_B,
    )


def _pin(model: CachedDecoder, rows: Rows) -> Rows:
    placement = model.decoder.placement
    if placement is None:
        return rows
    return jax.tree.map(lambda x: placement.constrain(x, ("row", "token")[: x.ndim]), rows)
