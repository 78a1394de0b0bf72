"""One table: our parameter paths, the Hugging Face tensor names, and the transform between the two, both ways.

A transform only reorders and reshapes, so that applied to a memory-mapped tensor it is a view and reading one shard
touches only the bytes of that shard. Letters: D embed, N query heads, K key/value heads, H head dim, F mlp, V vocab.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np

from iterpref_jax.models.config import ModelConfig

View = Callable[[np.ndarray], np.ndarray]

_GATED = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}


@dataclasses.dataclass(frozen=True)
class Weight:
    """One of our leaves: its path, its stored name(s), and views of one stored tensor in both directions.

    `stack` names the leading dims of the leaf that are separate tensors, `{layer}` and `{expert}` in the name.
    """

    path: tuple[str, ...]
    name: str
    to_ours: View
    to_hf: View
    stack: tuple[str, ...] = ()

    def names(self, config: ModelConfig) -> list[str]:
        """Returns the stored names, in C order over the stack dims."""
        sizes = {"layer": config.num_hidden_layers, "expert": config.num_experts}
        places = itertools.product(*(range(sizes[dim]) for dim in self.stack))
        return [self.name.format(**dict(zip(self.stack, place, strict=True))) for place in places]


def weights(config: ModelConfig) -> list[Weight]:
    """Returns every leaf of the model with its tensor name(s)."""
    table = [_same("embedding", "model.embed_tokens.weight"), *_norm(config, "norm", "model.norm")]
    if not config.tie_word_embeddings:
        table.append(_same("head", "lm_head.weight"))
    # Families with post norms (Gemma) have a norm before the MLP under another name.
    before_mlp = "pre_feedforward_layernorm" if config.post_norms else "post_attention_layernorm"
    layer = [*_norm(config, "attention_norm", "input_layernorm"), *_norm(config, "mlp_norm", before_mlp)]
    if config.post_norms:
        layer += _norm(config, "attention_post_norm", "post_attention_layernorm")
        layer += _norm(config, "mlp_post_norm", "post_feedforward_layernorm")
    mlp = _experts() if config.mlp == "experts" else _mlp(config)
    return table + [_in_layer(weight) for weight in (*layer, *_attention(config), *mlp)]


def _norm(config: ModelConfig, path: str, name: str) -> list[Weight]:
    parts = ("weight", "bias") if config.norm == "layer_norm" else ("weight",)
    return [_same(f"{path}.{part}", f"{name}.{part}") for part in parts]


def _attention(config: ModelConfig) -> list[Weight]:
    head_dim, heads, kv_heads = config.head_dim, config.num_attention_heads, config.num_key_value_heads
    table = []
    for ours, theirs, n in (("query", "q", heads), ("key", "k", kv_heads), ("value", "v", kv_heads)):
        table.append(_heads_out(f"attention.{ours}.kernel", f"self_attn.{theirs}_proj.weight", n, head_dim))
        if config.qkv_bias:
            table.append(_reshaped(f"attention.{ours}.bias", f"self_attn.{theirs}_proj.bias", (n, head_dim)))
    table.append(_heads_in("attention.out.kernel", "self_attn.o_proj.weight", heads, head_dim))
    if config.attention_out_bias:
        table.append(_same("attention.out.bias", "self_attn.o_proj.bias"))
    if config.qk_norm:
        table += _norm(config, "attention.query_norm", "self_attn.q_norm")
        table += _norm(config, "attention.key_norm", "self_attn.k_norm")
    return table


def _mlp(config: ModelConfig) -> list[Weight]:
    names = {"up": "c_fc", "down": "c_proj"} if config.mlp == "plain" else _GATED
    table = [_transposed(f"mlp.{ours}.kernel", f"mlp.{theirs}.weight") for ours, theirs in names.items()]
    if config.mlp_bias:
        table += [_same(f"mlp.{ours}.bias", f"mlp.{theirs}.bias") for ours, theirs in names.items()]
    return table


def _experts() -> list[Weight]:
    table = [
        _transposed(f"mlp.{ours}.kernel", f"mlp.experts.{{expert}}.{name}.weight") for ours, name in _GATED.items()
    ]
    return [_transposed("mlp.router", "mlp.gate.weight"), *(dataclasses.replace(w, stack=("expert",)) for w in table)]


def _in_layer(weight: Weight) -> Weight:
    name, stack = "model.layers.{layer}." + weight.name, ("layer", *weight.stack)
    return dataclasses.replace(weight, path=("layers", *weight.path), name=name, stack=stack)


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
