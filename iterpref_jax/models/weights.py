"""One table: our parameter paths, the Hugging Face tensor names, and the transform between the two, both ways.

A transform only reorders and reshapes, so that applied to a memory-mapped tensor it is a view and reading one shard
touches only the bytes of that shard. Letters: D embed, N query heads, K key/value heads, H head dim, F mlp, V vocab.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from iterpref_jax.models.config import ModelConfig

View = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Weight:
    """One of our leaves: its path, the tensor name (`{layer}` where stacked), and views in both directions."""

    path: tuple[str, ...]
    name: str
    to_ours: View
    to_hf: View

    @property
    def stacked(self) -> bool:
        return self.path[0] == "layers"


def weights(config: ModelConfig) -> list[Weight]:
    """Returns every leaf of the model with its tensor name(s)."""
    table = [_same("embedding", "model.embed_tokens.weight"), _same("norm.weight", "model.norm.weight")]
    if not config.tie_word_embeddings:
        table.append(_same("head", "lm_head.weight"))
    layer = [
        _same("attention_norm.weight", "input_layernorm.weight"),
        _same("mlp_norm.weight", "post_attention_layernorm.weight"),
        *_attention(config),
        *(_transposed(f"mlp.{ours}", f"mlp.{ours}_proj.weight") for ours in ("gate", "up", "down")),
    ]
    if config.mlp_bias:
        layer += [_same(f"mlp.{ours}_bias", f"mlp.{ours}_proj.bias") for ours in ("gate", "up", "down")]
    return table + [_in_layer(weight) for weight in layer]


def _attention(config: ModelConfig) -> list[Weight]:
    head_dim, heads, kv_heads = config.head_dim, config.num_attention_heads, config.num_key_value_heads
    table = []
    for ours, theirs, n in (("query", "q", heads), ("key", "k", kv_heads), ("value", "v", kv_heads)):
        table.append(_heads_out(f"attention.{ours}", f"self_attn.{theirs}_proj.weight", n, head_dim))
        if config.qkv_bias:
            table.append(_reshaped(f"attention.{ours}_bias", f"self_attn.{theirs}_proj.bias", (n, head_dim)))
    table.append(_heads_in("attention.out", "self_attn.o_proj.weight", heads, head_dim))
    if config.attention_out_bias:
        table.append(_same("attention.out_bias", "self_attn.o_proj.bias"))
    return table


def _in_layer(weight: Weight) -> Weight:
    return dataclasses.replace(weight, path=("layers", *weight.path), name="model.layers.{layer}." + weight.name)


def _weight(path: str, name: str, to_ours: View, to_hf: View) -> Weight:
    return Weight(tuple(path.split(".")), name, to_ours, to_hf)


def _same(path: str, name: str) -> Weight:
    return _weight(path, name, lambda t: t, lambda t: t)


def _transposed(path: str, name: str) -> Weight:
    return _weight(path, name, np.transpose, np.transpose)


def _reshaped(path: str, name: str, shape: tuple[int, ...]) -> Weight:
    return _weight(path, name, lambda t: t.reshape(shape), lambda t: t.reshape(-1))


def _heads_out(path: str, name: str, heads: int, head_dim: int) -> Weight:
    """[N * H, D] there, [D, N, H] here."""
    return _weight(
        path,
        name,
        lambda t: t.reshape(heads, head_dim, -1).transpose(2, 0, 1),
        lambda t: t.transpose(1, 2, 0).reshape(heads * head_dim, -1),
    )


def _heads_in(path: str, name: str, heads: int, head_dim: int) -> Weight:
    """[D, N * H] there, [N, H, D] here."""
    return _weight(
        path,
        name,
        lambda t: t.reshape(-1, heads, head_dim).transpose(1, 2, 0),
        lambda t: t.transpose(2, 0, 1).reshape(-1, heads * head_dim),
    )
