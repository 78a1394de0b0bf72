"""Model shapes: one dataclass, and one table a family that says how `config.json` becomes it.

Every key of a `config.json` is either read, required to have a value that this decoder implements, or known not to
change the forward pass. Anything else is an error that names it: no field is silently ignored.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from iterpref_jax.errors import UserError, did_you_mean


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of a decoder. Names are Hugging Face's."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    initializer_range: float
    tie_word_embeddings: bool
    qkv_bias: bool
    attention_out_bias: bool
    mlp_bias: bool

    def __post_init__(self):
        if self.num_attention_heads % self.num_key_value_heads:
            raise UserError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of num_key_value_heads "
                f"({self.num_key_value_heads})"
            )
        if self.head_dim % 2:
            raise UserError(f"head_dim must be even for rotary embeddings, got {self.head_dim}")


@dataclasses.dataclass(frozen=True)
class Family:
    """How one `model_type` maps `config.json` to `ModelConfig` and back.

    `read` takes a checked config and returns the fields that differ between families; `required` lists keys whose
    value must be one of these (the default when absent is the first).
    """

    architecture: str
    defaults: Mapping[str, Any]
    required: Mapping[str, tuple[Any, ...]]
    read: Callable[[Mapping[str, Any]], dict[str, bool]]
    write: Callable[[ModelConfig], dict[str, Any]]


FAMILIES: dict[str, Family] = {
    "llama": Family(
        architecture="LlamaForCausalLM",
        defaults={"rms_norm_eps": 1e-6, "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False},
        required={"hidden_act": ("silu",), "pretraining_tp": (1,)},
        read=lambda hf: {
            "qkv_bias": hf["attention_bias"],
            "attention_out_bias": hf["attention_bias"],
            "mlp_bias": hf["mlp_bias"],
        },
        write=lambda config: {"attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias},
    ),
    "qwen2": Family(
        architecture="Qwen2ForCausalLM",
        defaults={"rms_norm_eps": 1e-6, "tie_word_embeddings": False},
        required={"hidden_act": ("silu",), "use_sliding_window": (False,)},
        read=lambda hf: {"qkv_bias": True, "attention_out_bias": False, "mlp_bias": False},
        write=lambda config: {},
    ),
}

_SHAPE = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_OPTIONAL = {"initializer_range": 0.02, "attention_dropout": 0.0, "rope_theta": 10000.0}
_ROPE = ("rope_theta", "rope_scaling", "rope_parameters")
# Keys that do not change what the forward pass of training computes (max_position_embeddings only sizes caches;
# sliding_window and max_window_layers act only under use_sliding_window; the rest is about generation and saving).
_INERT = frozenset(
    """_attn_implementation _name_or_path architectures auto_map bos_token_id chunk_size_feed_forward dtype eos_token_id
    id2label is_encoder_decoder label2id max_position_embeddings max_window_layers model_type output_attentions
    output_hidden_states pad_token_id problem_type return_dict sliding_window torch_dtype transformers_version use_cache
    """.split()
)


def read_config(folder: str) -> ModelConfig:
    """Reads `config.json` of a Hugging Face folder.

    Raises:
        UserError: no such file, an unknown `model_type`, an unknown key, or a value that is not implemented.
    """
    path = epath.Path(folder) / "config.json"
    if not path.exists():
        raise UserError(f"{path} does not exist: a model folder holds config.json and *.safetensors")
    try:
        return from_hf(json.loads(path.read_text()))
    except (UserError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: {error}") from error


def inert_fields(folder: str) -> dict[str, Any]:
    """Returns the keys of a `config.json` that the forward pass does not read (token ids, context length, ...)."""
    raw = json.loads((epath.Path(folder) / "config.json").read_text())
    return {key: value for key, value in raw.items() if key in _INERT}


def from_hf(raw: Mapping[str, Any]) -> ModelConfig:
    """Turns the content of a `config.json` into a `ModelConfig`; see `read_config` for the errors."""
    family = _family(raw.get("model_type"))
    _check_keys(raw, family)
    hf = {**family.defaults, **_OPTIONAL, **{key: value for key, value in raw.items() if value is not None}}
    missing = [key for key in _SHAPE if key not in hf]
    if missing:
        raise UserError(f"missing key(s) {missing}")
    for key in (*_SHAPE, "num_key_value_heads", "head_dim"):
        if key in hf and (isinstance(hf[key], bool) or not isinstance(hf[key], int) or hf[key] < 1):
            raise UserError(f"{key} must be a whole number above 0, got {hf[key]!r}")
    if hf["attention_dropout"]:
        raise UserError(
            f"attention_dropout is {hf['attention_dropout']}: preference training runs without dropout; set it to 0"
        )
    heads = hf["num_attention_heads"]
    return ModelConfig(
        model_type=hf["model_type"],
        **{key: hf[key] for key in _SHAPE},
        num_key_value_heads=hf.get("num_key_value_heads", heads),
        head_dim=hf.get("head_dim", hf["hidden_size"] // heads),
        rms_norm_eps=hf["rms_norm_eps"],
        rope_theta=_rope_theta(hf),
        initializer_range=hf["initializer_range"],
        tie_word_embeddings=hf["tie_word_embeddings"],
        **family.read(hf),
    )


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """Returns a `config.json` that `from_hf` and `transformers` read back as `config`."""
    family = FAMILIES[config.model_type]
    shared = dataclasses.asdict(config)
    for ours in ("qkv_bias", "attention_out_bias", "mlp_bias", "rope_theta"):
        del shared[ours]
    rope = {"rope_type": "default", "rope_theta": config.rope_theta}
    # transformers 4 reads rope_theta, transformers 5 reads rope_parameters.
    names = {"architectures": [family.architecture], "rope_theta": config.rope_theta, "rope_parameters": rope}
    fixed = {key: values[0] for key, values in family.required.items()}
    return names | shared | fixed | family.write(config)


def _family(model_type: str | None) -> Family:
    if model_type not in FAMILIES:
        hint = did_you_mean(str(model_type), FAMILIES)
        raise UserError(f"model_type {model_type!r} is not supported; supported: {', '.join(FAMILIES)}{hint}")
    return FAMILIES[model_type]


def _check_keys(raw: Mapping[str, Any], family: Family) -> None:
    known = {*_SHAPE, *_OPTIONAL, *_ROPE, *_INERT, *family.defaults, *family.required}
    known |= {"num_key_value_heads", "head_dim", "layer_types"}
    for key, value in raw.items():
        if key not in known:
            raise UserError(
                f"key {key!r} is not known to this decoder{did_you_mean(key, known)}; it may change the model"
            )
        allowed = family.required.get(key)
        if allowed and value not in allowed and value is not None:
            raise UserError(f"{key} = {value!r} is not implemented; implemented: {', '.join(map(repr, allowed))}")
    kinds = set(raw.get("layer_types") or ["full_attention"])
    if kinds != {"full_attention"}:
        raise UserError(f"layer_types {sorted(kinds)} are not implemented; implemented: full_attention")


def _rope_theta(hf: Mapping[str, Any]) -> float:
    rope = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise UserError(f"rope_type {kind!r} is not implemented; implemented: 'default'")
    unknown = set(rope) - {"rope_type", "type", "rope_theta"}
    if unknown:
        raise UserError(f"unknown rope parameter(s) {sorted(unknown)}")
    return float(rope.get("rope_theta", hf["rope_theta"]))
