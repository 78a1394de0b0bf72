"""`config.json` of Hugging Face in and out.

Every key of a `config.json` is either read, required to have a value that this decoder implements, or known not to
change the forward pass. Anything else is an error that names it: no field is silently ignored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from iterpref_jax.errors import UserError, did_you_mean
from iterpref_jax.models.config import FULL, SLIDING, ModelConfig
from iterpref_jax.models.families import FAMILIES, Family, HfConfig
from iterpref_jax.models.rope import Rope, read_rope, rope_section

_SHAPE = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
_WHOLE = (
    *_SHAPE, "intermediate_size", "num_key_value_heads", "head_dim", "sliding_window", "sliding_window_pattern",
    "num_experts", "num_experts_per_tok", "moe_intermediate_size",
)  # fmt: skip
_SWITCHES = "tie_word_embeddings attention_bias mlp_bias use_bias norm_topk_prob use_sliding_window".split()
_NUMBERS = ("rms_norm_eps norm_epsilon query_pre_attn_scalar final_logit_softcapping initializer_range").split()
_NAMES, _LISTS = ("hidden_act", "hidden_activation"), ("layer_types", "mlp_only_layers")
_MAY_BE_NULL = ("head_dim num_key_value_heads sliding_window final_logit_softcapping intermediate_size").split()
_SHARED_DEFAULTS = {"initializer_range": 0.02, "head_dim": None, "rope_theta": 10000.0, "intermediate_size": None}
_ROPE = ("rope_theta", "rope_scaling", "rope_parameters")
# Training runs without dropout, as TRL's disable_dropout has it by default: these do not act.
DROPOUTS = ("attention_dropout", "residual_dropout", "embedding_dropout")
# Keys that do not change what the forward pass computes (max_position_embeddings only sizes caches, except where a rope
# needs it; the rest is about generation, saving, other programs, and how other code computes the same).
_INERT = frozenset(
    """_attn_implementation _attn_implementation_autoset attn_implementation _name_or_path architectures auto_map
    bos_token_id cache_implementation chunk_size_feed_forward dtype eos_token_id id2label is_encoder_decoder label2id
    max_position_embeddings model_type _model_name_or_path output_attentions output_hidden_states unk_token_id
    gradient_checkpointing keys_to_ignore_at_inference num_labels sep_token_id transformers.js_config unsloth_fixed
    unsloth_version pad_token_id problem_type return_dict tokenizer_class torch_dtype
    transformers_version use_cache""".split()
) | set(DROPOUTS)
_QUANTIZED = "quantization_config"
_FAMILY_FIELDS = {
    "norm": "rms_norm", "mlp": "gated", "num_experts": 0, "num_experts_per_tok": 0, "norm_topk_prob": False,
    "qkv_bias": False, "attention_out_bias": False, "mlp_bias": False, "qk_norm": False, "post_norms": False,
    "scale_embedding": False, "final_logit_softcapping": None, "sliding_window": None,
    "local_rope": None,
}  # fmt: skip


def read_config(folder: str) -> ModelConfig:
    """Reads `config.json` of a Hugging Face folder.

    Raises:
        UserError: no such file, an unknown `model_type`, an unknown key, or a value that is not implemented.
    """
    try:
        return from_hf(read_raw(folder))
    except UserError as error:
        raise UserError(f"{epath.Path(folder) / 'config.json'}: {error}") from error


def read_raw(folder: str) -> dict[str, Any]:
    """Returns the content of `config.json` of a Hugging Face folder; see `read_config` for the errors."""
    path = epath.Path(folder) / "config.json"
    if not path.exists():
        raise UserError(f"{path} does not exist: a model folder holds config.json and *.safetensors")
    try:
        raw = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is no JSON: {error}") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path} holds no JSON object")
    return raw


def inert_fields(raw: HfConfig) -> dict[str, Any]:
    """Returns the keys of a `config.json` that the forward pass does not read (token ids, context length, ...)."""
    inert = {*_INERT, *_family(raw.get("model_type")).inert}
    return {key: value for key, value in raw.items() if key in inert}


def notices(raw: HfConfig) -> list[str]:
    """Returns what a `config.json` asks for that has no effect here, in words for the user."""
    found = [f"{key} = {raw[key]}: training runs without dropout" for key in DROPOUTS if raw.get(key)]
    if raw.get("attn_logit_softcapping"):
        found.append(
            f"attn_logit_softcapping = {raw['attn_logit_softcapping']}: {raw['model_type']} does not read it, neither "
            "here nor in transformers"
        )
    return found


def from_hf(raw: HfConfig) -> ModelConfig:
    """Turns the content of a `config.json` into a `ModelConfig`; see `read_config` for the errors."""
    family = _family(raw.get("model_type"))
    raw = _without_aliases(raw, family)
    _check_keys(raw, family)
    hf = {**_SHARED_DEFAULTS, **family.defaults, **raw}
    _check_types(hf)
    fields = _FAMILY_FIELDS | {
        "model_type": hf["model_type"],
        **{key: hf[key] for key in (*_SHAPE, "initializer_range", "tie_word_embeddings")},
        "intermediate_size": hf["intermediate_size"],
        "num_key_value_heads": hf["num_key_value_heads"] or hf["num_attention_heads"],
        "head_dim": hf["head_dim"] or hf["hidden_size"] // hf["num_attention_heads"],
        "hidden_act": hf.get("hidden_act"),
        "norm_eps": hf.get("rms_norm_eps"),
        "layer_types": (FULL,) * hf["num_hidden_layers"],
    }
    fields |= family.read(hf)
    if SLIDING not in fields["layer_types"]:
        fields |= {"sliding_window": None, "local_rope": None}
    fields.setdefault("query_pre_attn_scalar", fields["head_dim"])
    fields["rope"] = fields.get("rope") or _read_rope(hf)
    # transformers 4 called SiLU "swish" as well, and gelu_new is gelu_pytorch_tanh.
    fields["hidden_act"] = {"swish": "silu", "gelu_new": "gelu_pytorch_tanh"}.get(
        fields["hidden_act"], fields["hidden_act"]
    )
    return ModelConfig(**fields)


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """Returns a `config.json` that `from_hf` and `transformers` read back as `config`."""
    family = FAMILIES[config.model_type]
    rope = config.rope.to_hf()
    common = {
        key: getattr(config, key)
        for key in (*_SHAPE, "num_key_value_heads", "head_dim", "initializer_range", "tie_word_embeddings")
    }
    written = {
        "architectures": [family.architecture],
        "model_type": config.model_type,
        **common,
        # transformers 4 reads rope_theta and rope_scaling, transformers 5 reads rope_parameters.
        "rope_theta": config.rope.rope_theta,
        "rope_scaling": None if config.rope.rope_type == "default" else rope,
        "rope_parameters": rope,
        **{
            key: value
            for key, value in {"hidden_act": config.hidden_act, "rms_norm_eps": config.norm_eps}.items()
            if key in family.defaults
        },
        **{key: values[0] for key, values in family.required.items()},
    }
    if "intermediate_size" not in family.inert:
        written["intermediate_size"] = config.intermediate_size
    return written | family.write(config)


def _family(model_type: str | None) -> Family:
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        hint = did_you_mean(str(model_type), FAMILIES)
        raise UserError(f"model_type {model_type!r} is not supported; supported: {', '.join(FAMILIES)}{hint}")
    return FAMILIES[model_type]


def _without_aliases(raw: HfConfig, family: Family) -> dict[str, Any]:
    out = {key: value for key, value in raw.items() if key not in family.aliases}
    for alias, key in family.aliases.items():
        if alias in raw and out.setdefault(key, raw[alias]) != raw[alias]:
            raise UserError(f"{alias} = {raw[alias]!r} and {key} = {out[key]!r} are two names of one number")
    return out


def _check_keys(raw: HfConfig, family: Family) -> None:
    known = {_QUANTIZED, *_SHAPE, *_SHARED_DEFAULTS, *_ROPE, *_INERT, *family.defaults, *family.required, *family.inert}
    if raw.get(_QUANTIZED):
        method = raw[_QUANTIZED].get("quant_method") if isinstance(raw[_QUANTIZED], Mapping) else raw[_QUANTIZED]
        raise UserError(
            f"{_QUANTIZED} ({method}): a quantised checkpoint, which is not read: dequantise it first, or take the one "
            "it was made from"
        )
    for key, value in raw.items():
        if key not in known:
            raise UserError(
                f"key {key!r} is not known to this decoder for model_type {raw['model_type']!r}"
                f"{did_you_mean(key, known)}; it may change the model"
            )
        allowed = family.required.get(key)
        if allowed and value not in allowed and value is not None:
            raise UserError(f"{key} = {value!r} is not implemented; implemented: {', '.join(map(repr, allowed))}")
    needed = (*_SHAPE, *(() if "intermediate_size" in family.inert else ("intermediate_size",)))
    missing = [key for key in needed if raw.get(key) is None]
    if missing:
        raise UserError(f"missing key(s) {missing}")


def _check_types(hf: HfConfig) -> None:
    for key, value in hf.items():
        if value is None and key in _MAY_BE_NULL:
            continue
        if key in _WHOLE and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise UserError(f"{key} must be a whole number above 0, got {value!r}")
        if key == "max_window_layers" and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            raise UserError(f"{key} must be a whole number of at least 0, got {value!r}")
        if key in _NAMES and not isinstance(value, str):
            raise UserError(f"{key} must be a name, got {value!r}")
        if key in _LISTS and value is not None and not isinstance(value, list | tuple):
            raise UserError(f"{key} must be a list or null, got {value!r}")
        if key in _SWITCHES and not isinstance(value, bool):
            raise UserError(f"{key} must be true or false, got {value!r}")
        if key in _NUMBERS and (isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0):
            raise UserError(f"{key} must be a number above 0, got {value!r}")


def _read_rope(hf: HfConfig) -> Rope:
    rope = rope_section(hf, "rope_scaling") or rope_section(hf, "rope_parameters")
    nested = sorted(key for key, value in rope.items() if isinstance(value, Mapping))
    if nested:
        raise UserError(f"rope_parameters with one dict for each of {nested} are not implemented for this family")
    theta = _SHARED_DEFAULTS["rope_theta"] if hf["rope_theta"] is None else hf["rope_theta"]
    return read_rope(rope, theta, hf.get("max_position_embeddings"))
