"""GGUF files of tiny models, written as llama.cpp's convert_hf_to_gguf.py writes each family."""

import math
import re

import gguf
import numpy as np

from iterpref_jax.models.hf_config import from_hf
from tests.support.model_configs import LLAMA3, YARN, heads

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "max_position_embeddings": 256,
}
ARCHITECTURES = {
    "llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "qwen3_moe": "qwen3moe",
    "starcoder2": "starcoder2", "gemma": "gemma", "gemma3_text": "gemma3",
}  # fmt: skip
# Every config.json here can be told from its GGUF; llama.cpp fixes some numbers of Gemma 3 and Qwen3-MoE.
CONFIGS = {
    "llama": {"model_type": "llama"} | heads(4, 2, 64) | {"rms_norm_eps": 1e-5, "rope_theta": 5e5},
    "llama_biased": {"model_type": "llama", "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}
    | heads(3, 1, 64, head_dim=10),
    "llama_linear": {"model_type": "llama", "rope_scaling": {"rope_type": "linear", "factor": 4.0}} | heads(4, 4, 64),
    "llama_llama3": {"model_type": "llama", "rope_theta": 500.0, "rope_scaling": {"rope_type": "llama3", **LLAMA3}}
    | heads(4, 2, 64),
    "llama_3_2": {"model_type": "llama", "rope_theta": 5e5, "rope_scaling": {
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }} | heads(2, 1, 64, head_dim=64),
    "mistral": {"model_type": "mistral", "sliding_window": 7} | heads(4, 2, 64),
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True} | heads(4, 2, 64),
    "qwen2_yarn": {"model_type": "qwen2", "rope_scaling": {"rope_type": "yarn", **YARN}} | heads(4, 1, 64),
    "qwen3": {"model_type": "qwen3", "rope_theta": 1e6} | heads(4, 2, 64, head_dim=10),
    "qwen3_biased": {"model_type": "qwen3", "attention_bias": True, "rope_scaling": {
        "rope_type": "yarn", **YARN, "attention_factor": 1.25, "beta_fast": 16.0, "beta_slow": 2.0,
    }} | heads(4, 2, 64, head_dim=10),
    "qwen3_moe": {
        "model_type": "qwen3_moe", "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
        "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
    } | heads(4, 2, 64, head_dim=10),
    "starcoder2": {"model_type": "starcoder2", "norm_epsilon": 1e-5, "use_bias": True} | heads(4, 2, 64),
    "starcoder2_untied": {"model_type": "starcoder2", "use_bias": False, "tie_word_embeddings": False}
    | heads(4, 2, 64),
    "gemma": {"model_type": "gemma", "rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    | heads(4, 1, 64, head_dim=10),
    "gemma3": {
        "model_type": "gemma3_text", "sliding_window": 5, "rope_theta": 1e6, "rope_local_base_freq": 1e4,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "query_pre_attn_scalar": 10, "num_hidden_layers": 7,
        "final_logit_softcapping": 30.0,
    } | heads(4, 1, 64, head_dim=10),
    "gemma3_no_window": {
        "model_type": "gemma3_text", "sliding_window_pattern": 1, "rope_theta": 1e6, "query_pre_attn_scalar": 16,
    } | heads(4, 2, 64, head_dim=16),
}  # fmt: skip
CONFIGS = {name: SHAPE | config for name, config in CONFIGS.items()}
KINDS = gguf.GGMLQuantizationType


def write_gguf(path, raw, tensors, kind=KINDS.F32, change=None):
    """Writes stored tensors of a config.json; matrices as `kind`. `change` may add to the writer before it writes."""
    writer = gguf.GGUFWriter(path, ARCHITECTURES[raw["model_type"]])
    add_hyperparameters(writer, raw)
    for name, array in converted(raw, tensors).items():
        quantised = array.ndim > 1 and kind != KINDS.F32
        data = gguf.quants.quantize(array, kind) if quantised else array
        writer.add_tensor(name, data, raw_dtype=kind if quantised else None)
    if change:
        change(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_hyperparameters(writer, raw):
    config = from_hf(raw)
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(raw["max_position_embeddings"])
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(raw["intermediate_size"])
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope.rope_theta)
    norm = writer.add_layer_norm_eps if config.norm == "layer_norm" else writer.add_layer_norm_rms_eps
    norm(config.norm_eps)
    if raw.get("head_dim"):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    add_rope_scaling(writer, raw.get("rope_scaling") or {})
    kind = raw["model_type"]
    if kind in ("llama", "mistral"):
        writer.add_vocab_size(config.vocab_size)
        writer.add_rope_dimension_count(config.head_dim)
    if kind == "qwen3_moe":
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(raw["moe_intermediate_size"])
    if config.sliding_window:
        writer.add_sliding_window(config.sliding_window)
    if config.final_logit_softcapping:
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    # As long as a real vocabulary's entries are: strings, numbers, an id.
    writer.add_token_list([f"token{i}" for i in range(config.vocab_size)])
    writer.add_token_scores([0.5] * config.vocab_size)
    writer.add_eos_token_id(3)


def add_rope_scaling(writer, scaling):
    kind = scaling.get("rope_type")
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(scaling["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
        for key, add in (
            ("attention_factor", writer.add_rope_scaling_yarn_attn_factor),
            ("beta_fast", writer.add_rope_scaling_yarn_beta_fast),
            ("beta_slow", writer.add_rope_scaling_yarn_beta_slow),
        ):
            if key in scaling:
                add(scaling[key])


def permuted(array, heads):
    """llama.cpp's `LlamaModel.permute`."""
    halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(array.shape))


def converted(raw, tensors):
    """Returns {llama.cpp's name: array}, by the names that the gguf package knows."""
    config, kind = from_hf(raw), raw["model_type"]
    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == ARCHITECTURES[kind])
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    out, experts = {}, {}
    for name, array in tensors.items():
        base, _, suffix = name.rpartition(".")
        if match := re.fullmatch(r"(.*\.mlp\.experts)\.(\d+)\.(\w+)", base):
            experts.setdefault(f"{match[1]}.{match[3]}", {})[int(match[2])] = array
            continue
        if kind in ("llama", "mistral") and base.endswith(("q_proj", "k_proj")):
            heads = config.num_attention_heads if base.endswith("q_proj") else config.num_key_value_heads
            array = permuted(array, heads)
        if kind in ("gemma", "gemma3_text") and name.endswith("norm.weight"):
            array = array + 1
        out[f"{names.get_name(base)}.{suffix}"] = array
    for base, parts in experts.items():
        out[f"{names.get_name(base)}.weight"] = np.stack([parts[i] for i in range(len(parts))])
    if (raw.get("rope_scaling") or {}).get("rope_type") == "llama3":
        out["rope_freqs.weight"] = llama3_factors(raw["rope_scaling"], config.rope.rope_theta, config.head_dim)
    return out


def llama3_factors(scaling, theta, head_dim):
    """What llama.cpp divides each frequency by: its `generate_extra_tensors`."""
    old, factor = scaling["original_max_position_embeddings"], scaling["factor"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    factors = []
    for i in range(0, head_dim, 2):
        wave = 2 * math.pi * theta ** (i / head_dim)
        smooth = (old / wave - low) / (high - low)
        between = 1 / ((1 - smooth) / factor + smooth)
        factors.append(1.0 if wave < old / high else factor if wave > old / low else between)
    return np.array(factors, np.float32)
