"""Grouped-query attention over packed trees."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from iterpref_jax.models.config import ModelConfig
from iterpref_jax.models.layers import param, rotate, zeros
from iterpref_jax.ops.tree_attention import tree_attention


class Attention(nnx.Module):
    """Queries, keys and values with RoPE by depth, then `tree_attention`, then the output projection."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype):
        d, n, k, h = config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.query = param(rngs, config, (d, n, h), ("embed", "heads", "head_dim"), dtype)
        self.key = param(rngs, config, (d, k, h), ("embed", "kv_heads", "head_dim"), dtype)
        self.value = param(rngs, config, (d, k, h), ("embed", "kv_heads", "head_dim"), dtype)
        self.out = param(rngs, config, (n, h, d), ("heads", "head_dim", "embed"), dtype)
        if config.qkv_bias:
            self.query_bias = zeros((n, h), ("heads", "head_dim"), dtype)
            self.key_bias = zeros((k, h), ("kv_heads", "head_dim"), dtype)
            self.value_bias = zeros((k, h), ("kv_heads", "head_dim"), dtype)
        if config.attention_out_bias:
            self.out_bias = zeros((d,), ("embed",), dtype)
        self.config = config

    def __call__(self, x_RTD, cos, sin, depth_RT, visible_until_RT, implementation: str | None) -> jax.Array:
        query, key, value = (self._project(name, x_RTD) for name in ("query", "key", "value"))
        attended = tree_attention(
            rotate(query, cos, sin),
            rotate(key, cos, sin),
            value,
            visible_until_RT,
            depth_RT,
            scale=self.config.head_dim**-0.5,
            implementation=implementation,
        )
        out = jnp.einsum("rtnh,nhd->rtd", attended, self.out[...].astype(x_RTD.dtype))
        return out + self.out_bias[...].astype(x_RTD.dtype) if self.config.attention_out_bias else out

    def _project(self, name: str, x_RTD: jax.Array) -> jax.Array:
        projected = jnp.einsum("rtd,dnh->rtnh", x_RTD, getattr(self, name)[...].astype(x_RTD.dtype))
        if self.config.qkv_bias:
            projected += getattr(self, f"{name}_bias")[...].astype(x_RTD.dtype)
        return projected
