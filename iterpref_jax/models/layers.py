"""The parts of a decoder layer. Parameters name their dims; `parallel.rules` says where the dims live.

Letters: R row, T token, D embed, N query heads, K key/value heads, H head dim, F mlp.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from iterpref_jax.models.config import ModelConfig


def param(
    rngs: nnx.Rngs, config: ModelConfig, shape: tuple[int, ...], dims: tuple[str, ...], dtype: jnp.dtype
) -> nnx.Param:
    """A weight drawn from N(0, initializer_range^2), as Hugging Face initialises these families."""
    assert len(shape) == len(dims)
    value = jax.random.normal(rngs.params(), shape, jnp.float32) * config.initializer_range
    return nnx.Param(value.astype(dtype), dims=dims)


def zeros(shape: tuple[int, ...], dims: tuple[str, ...], dtype: jnp.dtype) -> nnx.Param:
    return nnx.Param(jnp.zeros(shape, dtype), dims=dims)


class RMSNorm(nnx.Module):
    """Root-mean-square norm in float32, scaled in the compute dtype as `transformers` does."""

    def __init__(self, config: ModelConfig, *, dtype: jnp.dtype):
        self.epsilon = config.rms_norm_eps
        self.weight = nnx.Param(jnp.ones(config.hidden_size, dtype), dims=("embed",))

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.epsilon)
        return self.weight[...].astype(x.dtype) * x32.astype(x.dtype)


class Mlp(nnx.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype):
        d, f = config.hidden_size, config.intermediate_size
        self.gate = param(rngs, config, (d, f), ("embed", "mlp"), dtype)
        self.up = param(rngs, config, (d, f), ("embed", "mlp"), dtype)
        self.down = param(rngs, config, (f, d), ("mlp", "embed"), dtype)
        if config.mlp_bias:
            self.gate_bias = zeros((f,), ("mlp",), dtype)
            self.up_bias = zeros((f,), ("mlp",), dtype)
            self.down_bias = zeros((d,), ("embed",), dtype)
        self.bias = config.mlp_bias

    def __call__(self, x_RTD: jax.Array) -> jax.Array:
        gate = x_RTD @ self.gate[...].astype(x_RTD.dtype)
        up = x_RTD @ self.up[...].astype(x_RTD.dtype)
        if self.bias:
            gate, up = gate + self.gate_bias[...].astype(x_RTD.dtype), up + self.up_bias[...].astype(x_RTD.dtype)
        out = (jax.nn.silu(gate) * up) @ self.down[...].astype(x_RTD.dtype)
        return out + self.down_bias[...].astype(x_RTD.dtype) if self.bias else out


def rotary(depth_RT: jax.Array, config: ModelConfig) -> tuple[jax.Array, jax.Array]:
    """Returns cos and sin [R, T, H/2] in float32 of the rotation at each token's depth in its own branch."""
    fraction = jnp.arange(0, config.head_dim, 2, dtype=jnp.float32) / config.head_dim
    angle = depth_RT[..., None].astype(jnp.float32) / config.rope_theta**fraction
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x_RTNH: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates the two halves of the head dim (the Llama form of RoPE)."""
    first, second = jnp.split(x_RTNH.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x_RTNH.dtype)
