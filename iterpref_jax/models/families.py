"""One table: the model families, and how the keys of their `config.json` become a `ModelConfig` and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from iterpref_jax.errors import UserError
from iterpref_jax.models.config import FULL, SLIDING, ModelConfig
from iterpref_jax.models.rope import Rope, read_rope, rope_section

HfConfig = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Family:
    """One `model_type`.

    `defaults` are `transformers`' own for keys that a config.json leaves out (a key that is there may be null);
    `required` lists keys with the values that are implemented, `inert` keys that this family's forward pass does not
    read. `read` returns the fields that differ between families, `write` the keys that they become.
    """

    architecture: str
    defaults: HfConfig
    read: Callable[[HfConfig], dict[str, Any]]
    write: Callable[[ModelConfig], dict[str, Any]]
    required: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    inert: tuple[str, ...] = ()
    # Other names that `transformers` writes for a key.
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)


_WINDOW = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28, "layer_types": None}
_QWEN = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "num_key_value_heads": 32, "tie_word_embeddings": False, **_WINDOW}
_EXPERTS = ("num_experts", "num_experts_per_tok", "norm_topk_prob")


def _read_windows(hf: HfConfig) -> dict[str, Any]:
    """Qwen: some layers have a window, if it is switched on."""
    window = hf["sliding_window"] if hf["use_sliding_window"] else None
    first = hf["max_window_layers"] if window is not None else hf["num_hidden_layers"]
    types = hf["layer_types"] or [SLIDING if i >= first else FULL for i in range(hf["num_hidden_layers"])]
    return {"layer_types": tuple(types), "sliding_window": window}


def _write_windows(config: ModelConfig) -> dict[str, Any]:
    types = list(config.layer_types)
    return {
        "use_sliding_window": config.sliding_window is not None,
        "sliding_window": config.sliding_window,
        "max_window_layers": types.index(SLIDING) if SLIDING in types else len(types),
        "layer_types": types,
    }


def _read_one_window(hf: HfConfig) -> dict[str, Any]:
    """Mistral and StarCoder2: all layers have the window, or none has."""
    kind = FULL if hf["sliding_window"] is None else SLIDING
    return {"layer_types": (kind,) * hf["num_hidden_layers"], "sliding_window": hf["sliding_window"]}


def _read_moe(hf: HfConfig) -> dict[str, Any]:
    if hf["decoder_sparse_step"] != 1 or hf["mlp_only_layers"]:
        raise UserError(
            f"decoder_sparse_step = {hf['decoder_sparse_step']!r} and mlp_only_layers = {hf['mlp_only_layers']!r}: "
            "layers without experts among layers with experts are not implemented"
        )
    window = _read_one_window({**hf, "sliding_window": hf["sliding_window"] if hf["use_sliding_window"] else None})
    return {
        "mlp": "experts",
        "intermediate_size": hf["moe_intermediate_size"],
        "qk_norm": True,
        **_read_attention_bias(hf),
        **{key: hf[key] for key in _EXPERTS},
        **window,
    }


def _read_attention_bias(hf: HfConfig) -> dict[str, Any]:
    return {"qkv_bias": hf["attention_bias"], "attention_out_bias": hf["attention_bias"]}


_GEMMA3 = ("query_pre_attn_scalar", "final_logit_softcapping", "sliding_window")


def _read_gemma3(hf: HfConfig) -> dict[str, Any]:
    layers, pattern = hf["num_hidden_layers"], hf["sliding_window_pattern"]
    types = hf["layer_types"] or [SLIDING if (i + 1) % pattern else FULL for i in range(layers)]
    return {
        "hidden_act": hf["hidden_activation"],
        "norm": "rms_norm_offset",
        "qk_norm": True,
        "post_norms": True,
        "scale_embedding": True,
        "layer_types": tuple(types),
        **{key: hf[key] for key in _GEMMA3},
        **_read_attention_bias(hf),
        **_read_two_ropes(hf),
    }


def _read_two_ropes(hf: HfConfig) -> dict[str, Rope]:
    """Gemma 3: global layers have `rope_theta` and `rope_scaling`, sliding ones `rope_local_base_freq`."""
    nested = rope_section(hf, "rope_parameters")
    unknown = sorted(set(nested) - {FULL, SLIDING})
    if unknown:
        raise UserError(f"rope_parameters has {unknown}; it holds one dict for {FULL} and one for {SLIDING}")
    whole = {**rope_section(nested, FULL), **rope_section(hf, "rope_scaling")}
    local, longest = rope_section(nested, SLIDING), hf.get("max_position_embeddings")
    if "truncate" in {**whole, **local}:
        raise UserError(
            "rope parameter truncate is not implemented for this family: transformers does not find it there"
        )
    return {
        "rope": read_rope(whole, hf["rope_theta"], longest),
        "local_rope": read_rope(local, hf["rope_local_base_freq"], longest),
    }


def _write_gemma3(config: ModelConfig) -> dict[str, Any]:
    local = config.local_rope or config.rope
    scaling = {key: value for key, value in config.rope.to_hf().items() if key != "rope_theta"}
    return {key: getattr(config, key) for key in _GEMMA3} | {
        "hidden_activation": config.hidden_act,
        "attention_bias": config.qkv_bias,
        "layer_types": list(config.layer_types),
        "rope_theta": config.rope.rope_theta,
        "rope_local_base_freq": local.rope_theta,
        "rope_scaling": None if config.rope.rope_type == "default" else scaling,
        "rope_parameters": {FULL: config.rope.to_hf(), SLIDING: local.to_hf()},
    }


FAMILIES: dict[str, Family] = {
    "llama": Family(
        architecture="LlamaForCausalLM",
        defaults={
            "hidden_act": "silu", "rms_norm_eps": 1e-6, "num_key_value_heads": None, "tie_word_embeddings": False,
            "attention_bias": False, "mlp_bias": False,
        },
        required={"pretraining_tp": (1,), "rope_interleaved": (False,)},
        # SmolLM says so of itself; nothing reads it.
        inert=("is_llama_config",),
        read=lambda hf: {"mlp_bias": hf["mlp_bias"]} | _read_attention_bias(hf),
        write=lambda config: {"attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias},
    ),
    "mistral": Family(
        architecture="MistralForCausalLM",
        defaults={
            "hidden_act": "silu", "rms_norm_eps": 1e-6, "num_key_value_heads": 8, "tie_word_embeddings": False,
            "sliding_window": 4096,
        },
        read=_read_one_window,
        write=lambda config: {"sliding_window": config.sliding_window},
    ),
    "qwen2": Family(
        architecture="Qwen2ForCausalLM",
        defaults=_QWEN,
        required={"use_mrope": (False,)},
        # CodeQwen1.5 repeats rope_theta and max_position_embeddings under these names, which transformers never reads.
        inert=("rotary_emb_base", "seq_length"),
        read=lambda hf: {"qkv_bias": True} | _read_windows(hf),
        write=_write_windows,
    ),
    "qwen3": Family(
        architecture="Qwen3ForCausalLM",
        defaults={**_QWEN, "head_dim": 128, "attention_bias": False},
        read=lambda hf: {"qk_norm": True} | _read_attention_bias(hf) | _read_windows(hf),
        write=lambda config: {"attention_bias": config.qkv_bias} | _write_windows(config),
    ),
    "qwen3_moe": Family(
        architecture="Qwen3MoeForCausalLM",
        defaults={
            "hidden_act": "silu", "rms_norm_eps": 1e-6, "num_key_value_heads": 4, "tie_word_embeddings": False,
            "attention_bias": False, "use_sliding_window": False, "sliding_window": 4096, "decoder_sparse_step": 1,
            "mlp_only_layers": None, "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768,
            "norm_topk_prob": False,
        },
        required={"qkv_bias": (False,), "use_qk_norm": (True,), "shared_expert_intermediate_size": (0,)},
        aliases={"num_local_experts": "num_experts"},
        # intermediate_size is that of layers without experts; the router's loss is objective.router_aux_loss_coef.
        inert=("intermediate_size", "max_window_layers", "output_router_logits", "router_aux_loss_coef"),
        read=_read_moe,
        write=lambda config: {
            "attention_bias": config.qkv_bias,
            "use_sliding_window": config.sliding_window is not None,
            "sliding_window": config.sliding_window,
            "moe_intermediate_size": config.intermediate_size,
            **{key: getattr(config, key) for key in _EXPERTS},
        },
    ),
    "starcoder2": Family(
        architecture="Starcoder2ForCausalLM",
        defaults={
            "hidden_act": "gelu_pytorch_tanh", "norm_epsilon": 1e-5, "num_key_value_heads": 2, "sliding_window": None,
            "tie_word_embeddings": True, "use_bias": True, "initializer_range": 0.018042,
        },
        required={"norm_type": ("layer_norm",), "mlp_type": ("default",)},
        # Beside norm_epsilon in the 15B's file.
        inert=("rms_norm_eps",),
        read=lambda hf: {
            "norm": "layer_norm", "norm_eps": hf["norm_epsilon"], "mlp": "plain", "mlp_bias": hf["use_bias"],
            "qkv_bias": hf["use_bias"], "attention_out_bias": hf["use_bias"], **_read_one_window(hf),
        },
        write=lambda config: {
            "norm_epsilon": config.norm_eps, "use_bias": config.mlp_bias, "sliding_window": config.sliding_window,
        },
    ),
    "gemma": Family(
        architecture="GemmaForCausalLM",
        defaults={
            "hidden_act": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6, "num_key_value_heads": 16, "head_dim": 256,
            "tie_word_embeddings": True, "attention_bias": False,
        },
        required={"use_bidirectional_attention": (False,)},
        inert=("hidden_activation",),
        read=lambda hf: {
            # The official files say gelu and mean its approximation, which transformers takes for it in this family.
            "hidden_act": "gelu_pytorch_tanh" if hf["hidden_act"] == "gelu" else hf["hidden_act"],
            "norm": "rms_norm_offset", "scale_embedding": True, **_read_attention_bias(hf),
        },
        write=lambda config: {"attention_bias": config.qkv_bias},
    ),
    "gemma3_text": Family(
        architecture="Gemma3ForCausalLM",
        defaults={
            "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6, "num_key_value_heads": 4, "head_dim": 256,
            "tie_word_embeddings": True, "attention_bias": False, "query_pre_attn_scalar": 256,
            "final_logit_softcapping": None, "sliding_window": 4096,
            "sliding_window_pattern": 6, "layer_types": None, "rope_theta": 1e6, "rope_local_base_freq": 1e4,
        },
        required={"use_bidirectional_attention": (False,)},
        # _sliding_window_pattern is written beside layer_types, which it only sums up; transformers reads
        # attn_logit_softcapping for Gemma 2 alone.
        inert=("_sliding_window_pattern", "attn_logit_softcapping"),
        read=_read_gemma3,
        write=_write_gemma3,
    ),
}  # fmt: skip
