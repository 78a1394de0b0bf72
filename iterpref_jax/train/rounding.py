"""Stochastic rounding to bfloat16 with noise that is a function of (seed, place in the array): resumes are exact."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def rounded(x: jax.Array, seed: jax.Array, first: jax.Array | int = 0) -> jax.Array:
    """Rounds float32 to one of the two nearest bfloat16 numbers, up with the chance that keeps the mean.

    Args:
        seed: uint32; other noise for another seed.
        first: the place of this part's first element in the whole array, so that parts get the noise of the whole.
    """
    # bfloat16 is the upper half of float32: whatever carries over from the lower half rounds up.
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    noise = mixed(places(x.shape) + jnp.asarray(first, jnp.uint32) + mixed(seed)) >> 16
    upper = ((bits + noise) >> 16).astype(jnp.uint16)
    # Infinities carry nothing over; NaN might, and would become a number.
    return jnp.where(jnp.isfinite(x), jax.lax.bitcast_convert_type(upper, jnp.bfloat16), x.astype(jnp.bfloat16))


def mixed(x: jax.Array) -> jax.Array:
    """A hash of uint32 (MurmurHash3's finaliser, public domain)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def places(shape: tuple[int, ...]) -> jax.Array:
    """Returns the linear place of every element, modulo 2^32."""
    place = jnp.zeros(shape, jnp.uint32)
    for dim, size in enumerate(shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, dim)
    return place
