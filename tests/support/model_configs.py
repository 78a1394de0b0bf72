"""`config.json` of tiny models: every family with unusual but legal settings, spelled as real files spell them."""

import dataclasses
from typing import Any

SHAPE = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip
FULL, LOCAL = "full_attention", "sliding_attention"


@dataclasses.dataclass(frozen=True)
class Variant:
    """One config.json: `acting` settings each change what is computed, `idle` ones may not (null, or a default)."""

    model_type: str
    acting: dict[str, Any]
    idle: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def config(self) -> dict[str, Any]:
        return {"model_type": self.model_type, **SHAPE, **self.acting, **self.idle}


def heads(query: int, key_value: int, width: int, head_dim: int | None = None) -> dict[str, Any]:
    """Widths that are multiples of the heads, as `transformers` demands; a head is wider or narrower than its share."""
    shape = {"num_attention_heads": query, "num_key_value_heads": key_value, "hidden_size": width}
    return shape if head_dim is None else shape | {"head_dim": head_dim}


# Every rope kind stretches some frequencies and keeps others at these sizes; a sequence is longer than the old context.
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
YARN = {"factor": 4.0, "original_max_position_embeddings": 16}
BETAS, MSCALES = {"beta_fast": 1.0, "beta_slow": 0.25}, {"mscale": 0.7, "mscale_all_dim": 2.5}

VARIANTS = {
    "llama": Variant("llama", {}, {"attention_dropout": 0.0}),
    "qwen2": Variant("qwen2", {}, {"attention_dropout": 0.0}),
    "llama_head_dim": Variant(
        "llama",
        heads(3, 1, 24, head_dim=10) | {"rms_norm_eps": 0.3, "rope_theta": 200.0, "num_hidden_layers": 3},
        {"rope_scaling": None, "pretraining_tp": 1, "attention_bias": False, "mlp_bias": False, "pad_token_id": None},
    ),
    # As DeepSeek-Coder ships: the kind under its name of before transformers 4.43, the base beside it.
    "llama_linear": Variant(
        "llama",
        heads(6, 3, 36)
        | {"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_theta": 1000.0, "tie_word_embeddings": True},
        {"torch_dtype": "bfloat16", "bos_token_id": 5, "eos_token_id": 6, "hidden_act": "swish"},
    ),
    "llama_llama3": Variant(
        "llama",
        heads(5, 1, 40, head_dim=16)
        | {"rope_scaling": {"rope_type": "llama3", **LLAMA3}, "rope_theta": 500.0, "hidden_act": "gelu"}
        | {"attention_bias": True, "mlp_bias": True},
    ),
    "llama_yarn": Variant(
        "llama",
        heads(3, 3, 24, head_dim=16)
        | {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 200.0,
                **YARN,
                **BETAS,
                **MSCALES,
                "truncate": False,
            },
            "hidden_act": "relu",
        },
    ),
    "llama_yarn_factor": Variant(
        "llama",
        heads(4, 2, 32, head_dim=16)
        | {
            "rope_scaling": {"type": "yarn", **YARN, "attention_factor": 1.5},
            "rope_theta": 200.0,
            "attention_bias": True,
        },
    ),
    # Without original_max_position_embeddings the old context is max_position_embeddings.
    "llama_yarn_old_context": Variant(
        "llama",
        heads(4, 2, 32, head_dim=16)
        | {"rope_scaling": {"type": "yarn", "factor": 4.0}, "rope_theta": 200.0, "max_position_embeddings": 16},
    ),
    "mistral_window": Variant(
        "mistral",
        heads(6, 3, 36, head_dim=10) | {"sliding_window": 7, "hidden_act": "gelu_pytorch_tanh", "rms_norm_eps": 0.2},
        {"attention_dropout": 0.0},
    ),
    "mistral_linear": Variant(
        "mistral",
        heads(4, 4, 32)
        | {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 300.0}, "tie_word_embeddings": True},
        {"sliding_window": None, "head_dim": None},
    ),
    "qwen2_yarn": Variant(
        "qwen2",
        heads(4, 1, 64) | {"rope_scaling": {"type": "yarn", **YARN}, "rope_theta": 200.0, "tie_word_embeddings": True},
        {"use_sliding_window": False, "sliding_window": 5, "max_window_layers": 1},
    ),
    "qwen2_window": Variant(
        "qwen2",
        heads(5, 1, 40)
        | {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1, "num_hidden_layers": 3},
    ),
    "qwen2_layer_types": Variant(
        "qwen2",
        heads(6, 3, 24, head_dim=10)
        | {"layer_types": [LOCAL, FULL, LOCAL], "use_sliding_window": True, "sliding_window": 9, "hidden_act": "gelu"}
        | {"num_hidden_layers": 3, "rms_norm_eps": 0.2},
        {"max_window_layers": 28},
    ),
    "qwen3": Variant("qwen3", heads(5, 1, 24, head_dim=10) | {"rms_norm_eps": 0.2, "rope_theta": 300.0}),
    "qwen3_window": Variant(
        "qwen3",
        heads(3, 1, 24, head_dim=12)
        | {"attention_bias": True, "tie_word_embeddings": True, "hidden_act": "gelu_pytorch_tanh"}
        | {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2, "num_hidden_layers": 3}
        | {"rope_scaling": {"rope_type": "yarn", **YARN}, "rope_theta": 200.0},
    ),
    "qwen3_layer_types": Variant(
        "qwen3",
        heads(6, 3, 24, head_dim=8)
        | {"layer_types": [LOCAL, FULL, FULL, LOCAL], "use_sliding_window": True, "sliding_window": 6}
        | {"num_hidden_layers": 4},
    ),
    "qwen3_moe_top2": Variant(
        "qwen3_moe",
        heads(3, 1, 24, head_dim=10)
        | {"num_local_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 12, "norm_topk_prob": True}
        | {"rope_theta": 300.0},
        {"mlp_only_layers": [], "decoder_sparse_step": 1, "router_aux_loss_coef": 0.001, "output_router_logits": False},
    ),
    "qwen3_moe_top1": Variant(
        "qwen3_moe",
        heads(4, 2, 24, head_dim=8)
        | {"num_experts": 4, "num_experts_per_tok": 1, "moe_intermediate_size": 20, "hidden_act": "gelu"}
        | {"attention_bias": True, "tie_word_embeddings": True, "use_sliding_window": True, "sliding_window": 6},
        {"norm_topk_prob": False, "max_window_layers": 1},
    ),
    "qwen3_moe_all": Variant(
        "qwen3_moe",
        heads(4, 1, 32)
        | {"num_experts": 3, "num_experts_per_tok": 3, "moe_intermediate_size": 12, "rms_norm_eps": 0.2},
        {"norm_topk_prob": False},
    ),
    "starcoder2": Variant(
        "starcoder2",
        heads(6, 3, 36) | {"sliding_window": 7, "norm_epsilon": 0.3, "rope_theta": 300.0},
        {"use_bias": True, "tie_word_embeddings": True, "hidden_act": "gelu_pytorch_tanh", "residual_dropout": 0.1},
    ),
    "starcoder2_no_bias": Variant(
        "starcoder2",
        heads(3, 1, 24)
        | {"use_bias": False, "tie_word_embeddings": False, "hidden_act": "silu", "head_dim": 10}
        | {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"sliding_window": None, "attention_dropout": 0.1, "embedding_dropout": 0.1},
    ),
    "gemma": Variant(
        "gemma",
        heads(4, 1, 24, head_dim=10) | {"rms_norm_eps": 0.2, "rope_theta": 300.0, "attention_bias": True},
        {"pad_token_id": None, "hidden_activation": "gelu_pytorch_tanh", "hidden_act": "gelu"},
    ),
    "gemma_linear": Variant(
        "gemma",
        heads(3, 3, 36, head_dim=16)
        | {"rope_scaling": {"type": "linear", "factor": 3.0}, "hidden_act": "silu", "tie_word_embeddings": False},
        {"pad_token_id": None, "use_bidirectional_attention": False, "rope_theta": 10000.0},
    ),
    # As Gemma 3 shipped at first: two bases beside each other, the pattern a number.
    "gemma3_pattern": Variant(
        "gemma3_text",
        heads(3, 1, 24, head_dim=10)
        | {"rope_theta": 300.0, "rope_local_base_freq": 40.0, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}}
        | {"sliding_window": 6, "sliding_window_pattern": 2, "query_pre_attn_scalar": 24, "num_hidden_layers": 4},
        # A padding token would get no gradient in torch's embedding.
        {"pad_token_id": None, "final_logit_softcapping": None, "attn_logit_softcapping": 1.5},
    ),
    "gemma3_layer_types": Variant(
        "gemma3_text",
        heads(5, 1, 40, head_dim=8)
        | {"layer_types": [LOCAL, LOCAL, FULL], "sliding_window": 9, "num_hidden_layers": 3, "rms_norm_eps": 0.2}
        | {"query_pre_attn_scalar": 12, "final_logit_softcapping": 3.0, "attention_bias": True}
        | {"tie_word_embeddings": False, "hidden_activation": "silu"},
        {"pad_token_id": None, "_sliding_window_pattern": 3, "use_bidirectional_attention": False}
        | {"rope_theta": 1000000.0, "rope_local_base_freq": 10000.0, "rope_scaling": None},
    ),
    "gemma3_rope_parameters": Variant(
        "gemma3_text",
        heads(4, 2, 24, head_dim=16)
        | {"layer_types": [FULL, LOCAL], "sliding_window": 8, "query_pre_attn_scalar": 40}
        | {
            "rope_parameters": {
                FULL: {"rope_type": "yarn", "rope_theta": 200.0, **YARN, **BETAS},
                LOCAL: {"rope_type": "default", "rope_theta": 40.0},
            }
        },
        {"pad_token_id": None, "hidden_activation": "gelu_pytorch_tanh"},
    ),
}
