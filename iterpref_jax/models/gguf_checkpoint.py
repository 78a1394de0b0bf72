"""A GGUF file as the Hugging Face checkpoint that it was made from: its config.json and its tensors, names undone.

The other direction is llama.cpp's convert_hf_to_gguf.py; what it writes for each family is what is read here. A GGUF
does not hold everything: where llama.cpp fixes a number in its code, the same number stands here with a comment.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from iterpref_jax.errors import UserError, did_you_mean
from iterpref_jax.models.gguf_file import GgufHeader, GgufTensor, read_gguf
from iterpref_jax.models.gguf_rope import ROPE_FREQS, rope_scaling

_LAYERS = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
}  # fmt: skip
_GATED = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_EXPERTS = {f"{name}_exps": theirs.replace("mlp.", "mlp.experts.{}.") for name, theirs in _GATED.items()}
_WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
# Hyperparameters of every family: llama.cpp's key -> config.json's.
_SHAPE = {
    "embedding_length": "hidden_size", "block_count": "num_hidden_layers", "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads", "attention.head_count_kv": "num_key_value_heads",
    "context_length": "max_position_embeddings", "rope.freq_base": "rope_theta",
}  # fmt: skip
_TOKENS = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "padding_token_id": "pad_token_id"}
# Keys that are checked against others or read on their own, below and in gguf_rope.
_READ = (
    "vocab_size attention.key_length attention.value_length attention.sliding_window attention.sliding_window_pattern "
    "rope.dimension_count attention.causal rope.scaling.type rope.scaling.factor rope.scaling.original_context_length "
    "rope.scaling.finetuned rope.scaling.yarn_attn_factor rope.scaling.yarn_beta_fast rope.scaling.yarn_beta_slow"
).split()


@dataclasses.dataclass(frozen=True)
class _Architecture:
    """One `general.architecture`: what its tensors are called, its own keys, and the rest of its config.json."""

    model_type: str
    more: Callable[[_Metadata], dict[str, Any]]
    keys: dict[str, str]
    layers: dict[str, str]
    # llama.cpp rotates neighbouring numbers in this architecture, and its converter reorders query and key rows for it.
    interleaved: bool = False
    # Added by the converter to every norm weight.
    norm_shift: float = 0.0


class _Metadata:
    """The hyperparameters of one file by their names without the architecture."""

    def __init__(self, header: GgufHeader):
        self.header = header
        self.architecture = header.fields.get("general.architecture")
        prefix = f"{self.architecture}."
        fields = header.fields.items()
        self.numbers = {key.removeprefix(prefix): value for key, value in fields if key.startswith(prefix)}

    def get(self, key: str, default: Any = None) -> Any:
        return self.numbers.get(key, default)

    def need(self, key: str) -> Any:
        if key not in self.numbers:
            raise self.error(f"has no {self.architecture}.{key}")
        return self.numbers[key]

    def has(self, tensor: str) -> bool:
        return tensor in self.header.tensors

    def error(self, what: str) -> UserError:
        return UserError(f"{self.header.file} {what}")

    @property
    def head_dim(self) -> int:
        return self.get("attention.key_length") or self.need("embedding_length") // self.need("attention.head_count")


def config_json(file: Path) -> dict[str, Any]:
    """Returns the content of a config.json for a GGUF file.

    Raises:
        UserError: an architecture or a hyperparameter that is not supported (named), a missing one, a damaged file.
    """
    return _config_json(_Metadata(read_gguf(file)))


def stored_tensors(file: Path) -> dict[str, GgufTensor]:
    """Returns the tensors of a GGUF file under their Hugging Face names and in their form; see `config_json`."""
    metadata = _Metadata(read_gguf(file))
    architecture = _architecture(metadata)
    config = _config_json(metadata)
    tensors = metadata.header.tensors
    found = (pair for name, tensor in tensors.items() for pair in _named(name, tensor, architecture, config))
    return dict(found)


def _config_json(metadata: _Metadata) -> dict[str, Any]:
    architecture = _architecture(metadata)
    _check_supported(metadata, architecture)
    embedding = metadata.header.tensors.get("token_embd.weight")
    if embedding is None:
        raise metadata.error("has no tensor token_embd.weight")
    keys = {**_SHAPE, **architecture.keys}
    tokens = {ours: metadata.header.fields.get(f"tokenizer.ggml.{theirs}") for theirs, ours in _TOKENS.items()}
    config = {
        "model_type": architecture.model_type,
        # Tokens that pad the vocabulary are rows of the embedding like others.
        "vocab_size": embedding.shape[0],
        "head_dim": metadata.head_dim,
        "tie_word_embeddings": not metadata.has("output.weight"),
        # llama.cpp's own defaults.
        "rope_theta": 10000.0,
        "num_key_value_heads": metadata.need("attention.head_count"),
        **{ours: metadata.get(key) for key, ours in keys.items() if metadata.get(key) is not None},
        **{key: value for key, value in tokens.items() if value is not None},
        **architecture.more(metadata),
    }
    return {key: value for key, value in config.items() if value is not None}


def _architecture(metadata: _Metadata) -> _Architecture:
    name = metadata.architecture
    if name not in _ARCHITECTURES:
        hint = did_you_mean(str(name), _ARCHITECTURES)
        raise metadata.error(f"is of architecture {name!r}; supported: {', '.join(_ARCHITECTURES)}{hint}")
    return _ARCHITECTURES[name]


def _check_supported(metadata: _Metadata, architecture: _Architecture) -> None:
    if metadata.header.fields.get("split.count", 1) > 1:
        raise metadata.error("is one part of a split model; join the parts: llama-gguf-split --merge FIRST OUT")
    known = {*_SHAPE, *_READ, *architecture.keys}
    for key, value in metadata.numbers.items():
        if key not in known:
            hint = did_you_mean(key, known)
            raise metadata.error(f"has {metadata.architecture}.{key} = {value!r}, which is not supported{hint}")
        if isinstance(value, list) and key != "attention.sliding_window_pattern":
            raise metadata.error(f"has another {metadata.architecture}.{key} for every layer, which is not supported")
    head_dim = metadata.head_dim
    for key in ("attention.value_length", "rope.dimension_count"):
        if metadata.get(key, head_dim) != head_dim:
            raise metadata.error(
                f"has {metadata.architecture}.{key} = {metadata.get(key)}; supported: the head's width, {head_dim}"
            )
    if not metadata.get("attention.causal", True):
        raise metadata.error("is no causal model (attention.causal is false)")


def _named(
    name: str, tensor: GgufTensor, architecture: _Architecture, config: dict[str, Any]
) -> Iterator[tuple[str, GgufTensor]]:
    """Yields the Hugging Face tensor(s) of one tensor; a name that is not known stays, and is told as unexpected."""
    parts = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    layer, base, kind = parts.groups() if parts else (None, name, "")
    if name == ROPE_FREQS:
        return
    if layer is None:
        yield (f"{_WHOLE[base]}.{kind}" if base in _WHOLE else name), _undone(base, tensor, architecture, config)
    elif base in architecture.layers:
        theirs = architecture.layers[base]
        # Experts lie in one tensor, the expert outermost.
        for expert in range(tensor.shape[0]) if "{}" in theirs else [None]:
            one = tensor if expert is None else tensor.part(expert)
            named = f"model.layers.{layer}.{theirs.format(expert)}.{kind}"
            yield named, _undone(base, one, architecture, config)
    else:
        yield name, tensor


def _undone(base: str, tensor: GgufTensor, architecture: _Architecture, config: dict[str, Any]) -> GgufTensor:
    if base.endswith("norm") and architecture.norm_shift:
        return dataclasses.replace(tensor, shift=architecture.norm_shift)
    if architecture.interleaved and base in ("attn_q", "attn_k"):
        heads = config["num_attention_heads" if base == "attn_q" else "num_key_value_heads"]
        return dataclasses.replace(tensor, permuted_heads=heads)
    return tensor


def _llama(metadata: _Metadata) -> dict[str, Any]:
    """Llama, and Mistral under the same name; a window says which."""
    window = metadata.get("attention.sliding_window")
    kind = {} if window is None else {"model_type": "mistral", "sliding_window": window}
    biases = {
        "attention_bias": metadata.has("blk.0.attn_q.bias"),
        "mlp_bias": metadata.has("blk.0.ffn_gate.bias"),
    }
    return kind | rope_scaling(metadata) | (biases if not kind or any(biases.values()) else {})


def _qwen2(metadata: _Metadata) -> dict[str, Any]:
    return _no_window(metadata) | rope_scaling(metadata)


def _qwen3(metadata: _Metadata) -> dict[str, Any]:
    return _qwen2(metadata) | {"attention_bias": metadata.has("blk.0.attn_q.bias")}


def _qwen3moe(metadata: _Metadata) -> dict[str, Any]:
    # llama.cpp renormalises the chosen experts' weights whatever the file says.
    return _qwen3(metadata) | {"norm_topk_prob": True}


def _starcoder2(metadata: _Metadata) -> dict[str, Any]:
    window = {"sliding_window": metadata.get("attention.sliding_window")}
    return window | rope_scaling(metadata) | {"use_bias": metadata.has("blk.0.attn_q.bias")}


def _gemma(metadata: _Metadata) -> dict[str, Any]:
    return {"attention_bias": metadata.has("blk.0.attn_q.bias"), **rope_scaling(metadata)}


def _gemma3(metadata: _Metadata) -> dict[str, Any]:
    layers, window = metadata.need("block_count"), metadata.get("attention.sliding_window")
    # llama.cpp's fixed numbers: one global layer in six; 27B (62 layers) scales scores by its width for each head.
    pattern = metadata.get("attention.sliding_window_pattern", 6)
    local = pattern if isinstance(pattern, list) else [bool((i + 1) % pattern) for i in range(layers)]
    width = metadata.need("embedding_length") // metadata.need("attention.head_count")
    return {
        "sliding_window": window,
        "layer_types": [
            "sliding_attention" if window is not None and is_local else "full_attention" for is_local in local
        ],
        "query_pre_attn_scalar": width if layers == 62 else metadata.head_dim,
        "rope_local_base_freq": metadata.get("rope.freq_base_swa", 10000.0),
        **_gemma(metadata),
    }


def _no_window(metadata: _Metadata) -> dict[str, Any]:
    if metadata.get("attention.sliding_window") is not None:
        raise metadata.error(f"has {metadata.architecture}.attention.sliding_window, which is not supported")
    return {}


_RMS = {"attention.layer_norm_rms_epsilon": "rms_norm_eps"}
_DENSE = {**_LAYERS, **_GATED}
_ARCHITECTURES = {
    "llama": _Architecture("llama", _llama, _RMS, _DENSE, interleaved=True),
    "qwen2": _Architecture("qwen2", _qwen2, _RMS, _DENSE),
    "qwen3": _Architecture("qwen3", _qwen3, _RMS, _DENSE),
    "qwen3moe": _Architecture(
        "qwen3_moe",
        _qwen3moe,
        {
            **_RMS, "expert_count": "num_experts", "expert_used_count": "num_experts_per_tok",
            "expert_feed_forward_length": "moe_intermediate_size",
        },
        {**_LAYERS, **_EXPERTS, "ffn_gate_inp": "mlp.gate"},
    ),
    "starcoder2": _Architecture(
        "starcoder2",
        _starcoder2,
        {"attention.layer_norm_epsilon": "norm_epsilon"},
        {**_LAYERS, "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"},
    ),
    "gemma": _Architecture("gemma", _gemma, _RMS, _DENSE, norm_shift=1.0),
    "gemma3": _Architecture(
        "gemma3_text",
        _gemma3,
        {**_RMS, "final_logit_softcapping": "final_logit_softcapping", "rope.freq_base_swa": "rope_local_base_freq"},
        {
            **_DENSE, "ffn_norm": "pre_feedforward_layernorm", "post_attention_norm": "post_attention_layernorm",
            "post_ffw_norm": "post_feedforward_layernorm",
        },
        norm_shift=1.0,
    ),
}  # fmt: skip
