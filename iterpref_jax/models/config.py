"""The shape of a decoder: one dataclass, whatever the family."""

from __future__ import annotations

import dataclasses

from iterpref_jax.errors import UserError, did_you_mean
from iterpref_jax.models.rope import Rope

FULL, SLIDING = "full_attention", "sliding_attention"
ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh", "relu")
NORMS = ("rms_norm", "rms_norm_offset", "layer_norm")
MLPS = ("gated", "plain", "experts")


@dataclasses.dataclass(frozen=True)
class LayerKind:
    """What may differ from layer to layer: the window of its attention and its rotation."""

    window: int | None
    rope: Rope


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of a decoder. Names are Hugging Face's where it has one for all families."""

    model_type: str
    vocab_size: int
    hidden_size: int
    # Of one expert, where the MLP is made of experts.
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    hidden_act: str
    norm: str
    norm_eps: float
    mlp: str
    num_experts: int
    num_experts_per_tok: int
    norm_topk_prob: bool
    qkv_bias: bool
    attention_out_bias: bool
    mlp_bias: bool
    qk_norm: bool
    # Norms behind attention and MLP as well as before them.
    post_norms: bool
    # The embedding is multiplied by sqrt(hidden_size).
    scale_embedding: bool
    # Scores are divided by its root.
    query_pre_attn_scalar: float
    final_logit_softcapping: float | None
    layer_types: tuple[str, ...]
    sliding_window: int | None
    rope: Rope
    # Of the sliding layers; None is the same rotation.
    local_rope: Rope | None
    initializer_range: float
    tie_word_embeddings: bool

    def __post_init__(self):
        for name, known in {"hidden_act": ACTIVATIONS, "norm": NORMS, "mlp": MLPS}.items():
            if getattr(self, name) not in known:
                hint = did_you_mean(str(getattr(self, name)), known)
                raise UserError(f"{name} must be one of {', '.join(known)}, not {getattr(self, name)!r}{hint}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise UserError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of num_key_value_heads "
                f"({self.num_key_value_heads})"
            )
        if self.head_dim % 2:
            raise UserError(f"head_dim must be even for rotary embeddings, got {self.head_dim}")
        if self.mlp == "experts" and not 1 <= self.num_experts_per_tok <= self.num_experts:
            raise UserError(
                f"num_experts_per_tok ({self.num_experts_per_tok}) must lie between 1 and num_experts "
                f"({self.num_experts})"
            )
        self._check_layers()

    def _check_layers(self) -> None:
        if len(self.layer_types) != self.num_hidden_layers:
            raise UserError(
                f"layer_types names {len(self.layer_types)} layers, num_hidden_layers is {self.num_hidden_layers}"
            )
        unknown = sorted(set(self.layer_types) - {FULL, SLIDING})
        if unknown:
            raise UserError(f"layer_types {unknown} are not implemented; implemented: {FULL}, {SLIDING}")
        if SLIDING in self.layer_types and (self.sliding_window is None or self.sliding_window < 1):
            raise UserError(f"layers with {SLIDING} need a sliding_window of at least 1, got {self.sliding_window!r}")

    @property
    def layer_kinds(self) -> tuple[LayerKind, ...]:
        """The kind of every layer, first to last."""
        local = LayerKind(self.sliding_window, self.local_rope or self.rope)
        return tuple(local if kind == SLIDING else LayerKind(None, self.rope) for kind in self.layer_types)
