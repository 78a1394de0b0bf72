"""Grouped-query attention; what a query sees is the caller's: packed trees in training, a cache in decoding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from iterpref_jax.models.layers import Linear, Maker, Norm
from iterpref_jax.models.rope import rotate
from iterpref_jax.ops.kept import PRODUCTS

# (query [R, T, N, H], key [R, T, K, H], value [R, T, K, H]) -> (attended [R, T, N, H], what the caller wants to keep)
Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]


class Attention(nnx.Module):
    """Projections to queries, keys and values, their norms and RoPE, `attend`, then the output projection."""

    def __init__(self, make: Maker):
        config = make.config
        heads, kv_heads = ("heads", "head_dim"), ("kv_heads", "head_dim")
        self.query = Linear(make, "query", ("embed",), heads, bias=config.qkv_bias)
        self.key = Linear(make, "key", ("embed",), kv_heads, bias=config.qkv_bias)
        self.value = Linear(make, "value", ("embed",), kv_heads, bias=config.qkv_bias)
        self.out = Linear(make, "out", heads, ("embed",), bias=config.attention_out_bias)
        self.has_norms = config.qk_norm
        if self.has_norms:
            self.query_norm, self.key_norm = Norm(make, "head_dim"), Norm(make, "head_dim")

    def __call__(self, x_RTD: jax.Array, cos: jax.Array, sin: jax.Array, attend: Attend) -> tuple[jax.Array, Any]:
        linears = self.query, self.key, self.value
        query, key, value = (checkpoint_name(linear(x_RTD), PRODUCTS) for linear in linears)
        if self.has_norms:
            query, key = self.query_norm(query), self.key_norm(key)
        attended, kept = attend(rotate(query, cos, sin), rotate(key, cos, sin), value)
        return checkpoint_name(self.out(attended), PRODUCTS), kept
