"""Log-probabilities of chosen targets without logits of the whole batch.

Letters: R row, T token, G gathered target, D embed, V vocab.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def softcapped(logits: jax.Array, softcap: float | None) -> jax.Array:
    """Returns logits bent smoothly into (-softcap, softcap); None leaves them."""
    return logits if softcap is None else softcap * jnp.tanh(logits / softcap)


def gather_sources(hidden_RTD: jax.Array, source_RG: jax.Array) -> jax.Array:
    """Returns the hidden states [R, G, D] that predict the targets."""
    return jnp.take_along_axis(hidden_RTD, source_RG[:, :, None], axis=1)


def linear_logp(
    hidden_RGD: jax.Array, head_VD: jax.Array, target_RG: jax.Array, *, chunk: int, softcap: float | None = None
) -> jax.Array:
    """Returns log softmax(hidden @ head.T)[target] as float32 [R, G]; `softcap` bends the logits first.

    The vocabulary projection runs over `chunk` targets of every row at a time and is computed again in the backward
    pass, so at most R * chunk * V logits exist. Products accumulate in float32 and log-sum-exp is float32: preference
    losses subtract sums over hundreds of tokens.
    """
    rows, targets, _ = hidden_RGD.shape
    chunks = max(1, -(-targets // chunk))
    padding = chunks * chunk - targets
    hidden = jnp.pad(hidden_RGD, ((0, 0), (0, padding), (0, 0))).reshape(rows, chunks, chunk, -1).swapaxes(0, 1)
    target = jnp.pad(target_RG, ((0, 0), (0, padding))).reshape(rows, chunks, chunk).swapaxes(0, 1)

    @jax.checkpoint
    def chunk_logp(hidden_RcD: jax.Array, target_Rc: jax.Array) -> jax.Array:
        logits = jnp.einsum("rcd,vd->rcv", hidden_RcD, head_VD, preferred_element_type=jnp.float32)
        logits = softcapped(logits, softcap)
        picked = jnp.take_along_axis(logits, target_Rc[:, :, None], axis=-1)[:, :, 0]
        return picked - jax.nn.logsumexp(logits, axis=-1)

    _, logp = jax.lax.scan(lambda _, part: (None, chunk_logp(*part)), None, (hidden, target))
    return logp.swapaxes(0, 1).reshape(rows, chunks * chunk)[:, :targets]
