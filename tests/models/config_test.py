"""`config.json` in and out: what is refused and how, round trips, and that every field of ours changes something."""

import contextlib
import dataclasses
import functools

import jax
import numpy as np
import pytest

from iterpref_jax.errors import UserError
from iterpref_jax.models.config import FULL, SLIDING, ModelConfig
from iterpref_jax.models.decoder import Decoder
from iterpref_jax.models.families import FAMILIES
from iterpref_jax.models.hf_config import from_hf, notices, to_hf
from iterpref_jax.models.rope import Rope
from iterpref_jax.models.transformer import abstract_params, init_params
from tests.support.model_configs import VARIANTS
from tests.support.models import COMPUTE

LLAMA, QWEN, QWEN3 = (VARIANTS[name].config for name in ("llama", "qwen2", "qwen3"))
YARN = {"rope_type": "yarn", "rope_theta": 200.0, "factor": 4.0, "original_max_position_embeddings": 16}
MOE, GEMMA3 = VARIANTS["qwen3_moe_all"].config, VARIANTS["gemma3_pattern"].config


def test_every_family_has_a_variant():
    assert {variant.model_type for variant in VARIANTS.values()} == set(FAMILIES)


@pytest.mark.parametrize("name", VARIANTS)
def test_what_is_written_reads_back_equal(name):
    config = from_hf(VARIANTS[name].config)
    assert from_hf(to_hf(config)) == config


def test_an_unknown_family_is_named_beside_those_supported():
    with pytest.raises(UserError, match="model_type 'gpt2' is not supported") as error:
        from_hf({**LLAMA, "model_type": "gpt2"})
    assert all(name in str(error.value) for name in FAMILIES)


def test_a_config_without_a_family_is_refused():
    with pytest.raises(UserError, match="model_type None is not supported"):
        from_hf({key: value for key, value in LLAMA.items() if key != "model_type"})


@pytest.mark.parametrize("model_type", FAMILIES)
def test_an_unknown_key_is_named_in_every_family(model_type):
    base = next(variant.config for variant in VARIANTS.values() if variant.model_type == model_type)
    with pytest.raises(UserError, match="'attention_multiplier' is not known"):
        from_hf(base | {"attention_multiplier": 2.0})


@pytest.mark.parametrize(
    ("base", "fields", "message"),
    [
        (LLAMA, {"hidden_act": "tanh"}, "hidden_act must be one of .*'tanh'"),
        (LLAMA, {"pretraining_tp": 2}, "pretraining_tp = 2 is not implemented; implemented: 1"),
        (LLAMA, {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type 'dynamic' is not implemented"),
        (LLAMA, {"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "rope_type 'longrope'"),
        (LLAMA, {"rope_scaling": {"type": "linear"}}, "rope_type 'linear' needs factor"),
        (LLAMA, {"rope_scaling": {"type": "linear", "factor": 2.0, "beta_fast": 1}}, "beta_fast.*'linear'"),
        (LLAMA, {"rope_scaling": {"type": "linear", "factor": "4"}}, "factor must be a number above 0, got '4'"),
        (LLAMA, {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        (LLAMA, {"rope_interleaved": True}, "rope_interleaved = True is not implemented; implemented: False"),
        (LLAMA, {"quantization_config": {"quant_method": "fp8"}}, r"quantization_config \(fp8\).*dequantise it first"),
        (LLAMA, {"quantization_config": "gptq"}, r"quantization_config \(gptq\)"),
        (LLAMA, {"rope_theta": -1.0}, "rope_theta must be a number above 0, got -1.0"),
        (LLAMA, {"hidden_size": 32.0}, "hidden_size must be a whole number above 0, got 32.0"),
        (LLAMA, {"num_hidden_layers": True}, "num_hidden_layers must be a whole number above 0, got True"),
        (LLAMA, {"vocab_size": None}, "missing key.*vocab_size"),
        (LLAMA, {"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false, got 'yes'"),
        (LLAMA, {"rms_norm_eps": 0}, "rms_norm_eps must be a number above 0, got 0"),
        (LLAMA, {"num_key_value_heads": 3}, "multiple of num_key_value_heads"),
        (LLAMA, {"head_dim": 7}, "head_dim must be even"),
        (QWEN, {"use_mrope": True}, "use_mrope = True is not implemented"),
        (QWEN, {"layer_types": [FULL]}, "layer_types names 1 layers, num_hidden_layers is 2"),
        (QWEN, {"layer_types": [FULL, "chunked_attention"]}, "'chunked_attention'"),
        (QWEN, {"layer_types": [FULL, SLIDING]}, "need a sliding_window of at least 1, got None"),
        (QWEN, {"use_sliding_window": True, "sliding_window": 0}, "sliding_window must be a whole number above 0"),
        (QWEN, {"use_sliding_window": True, "max_window_layers": None}, "max_window_layers"),
        (QWEN3, {"layer_types": "full_attention"}, "layer_types"),
        (MOE, {"mlp_only_layers": [0]}, r"mlp_only_layers = \[0\]"),
        (MOE, {"decoder_sparse_step": 2}, "decoder_sparse_step = 2"),
        (MOE, {"num_experts_per_tok": 4}, r"num_experts_per_tok \(4\) must lie between 1 and num_experts \(3\)"),
        (MOE, {"shared_expert_intermediate_size": 64}, "shared_expert_intermediate_size = 64 is not implemented"),
        (VARIANTS["starcoder2"].config, {"norm_type": "rms_norm"}, "norm_type = 'rms_norm' is not implemented"),
        (GEMMA3, {"use_bidirectional_attention": True}, "use_bidirectional_attention = True is not implemented"),
        (GEMMA3, {"rope_parameters": {"chunked_attention": {}}}, "chunked_attention"),
        # transformers looks for it where Gemma 3 has no such key, and so truncates whatever the file says.
        (GEMMA3, {"rope_scaling": YARN | {"truncate": False}}, "truncate"),
        (GEMMA3, {"final_logit_softcapping": -1.0}, "final_logit_softcapping must be a number above 0"),
    ],
)
def test_a_value_that_is_not_implemented_is_refused_by_name(base, fields, message):
    with pytest.raises(UserError, match=message):
        from_hf(base | fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"is_llama_config": True, "rope_interleaved": False},
        {"unsloth_fixed": True, "unsloth_version": "2025.1"},
        {"_attn_implementation_autoset": True, "attn_implementation": "sdpa"},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0}},
        {"gradient_checkpointing": False, "keys_to_ignore_at_inference": ["past_key_values"]},
        {"sep_token_id": 1, "num_labels": 2, "transformers.js_config": {"kv_cache_dtype": {}}},
        {"quantization_config": None},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_what_other_programs_write_beside_the_shape_changes_nothing(fields):
    assert from_hf(LLAMA | fields) == from_hf(LLAMA)


@pytest.mark.parametrize("key", sorted(set().union(*(variant.config for variant in VARIANTS.values()))))
def test_no_value_of_the_wrong_type_escapes_as_a_traceback(key):
    for variant in VARIANTS.values():
        for value in ("x", 2.5, -1, [1], {"a": 1}, None):
            if key in variant.config:
                with contextlib.suppress(UserError):
                    from_hf(variant.config | {key: value})


@pytest.mark.parametrize(("old", "name"), [("swish", "silu"), ("gelu_new", "gelu_pytorch_tanh")])
def test_an_activation_under_its_other_name_is_the_same(old, name):
    assert from_hf(LLAMA | {"hidden_act": old}) == from_hf(LLAMA | {"hidden_act": name})


def test_rope_scaling_wins_over_rope_parameters_as_in_transformers():
    scaling = {"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_theta": 70.0}
    other = {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}}
    assert from_hf(LLAMA | scaling | other) == from_hf(LLAMA | scaling)


def test_a_null_truncate_of_yarn_is_false_as_in_transformers():
    null, off = (LLAMA | {"rope_parameters": YARN | {"truncate": value}} for value in (None, False))
    assert from_hf(null).rope.frequencies(16)[0].tolist() == from_hf(off).rope.frequencies(16)[0].tolist()


def test_a_misspelt_key_is_answered_with_its_neighbour():
    with pytest.raises(UserError, match="did you mean 'attention_bias'"):
        from_hf(LLAMA | {"attention_bais": True})


@pytest.mark.parametrize(
    ("base", "key", "value"),
    [
        (LLAMA, "attention_dropout", 0.1),
        (VARIANTS["starcoder2"].config, "residual_dropout", 0.2),
        (VARIANTS["starcoder2"].config, "embedding_dropout", 0.3),
        (GEMMA3, "attn_logit_softcapping", 50.0),
    ],
)
def test_a_setting_without_effect_is_announced_with_its_value(base, key, value):
    assert any(f"{key} = {value}" in notice for notice in notices(base | {key: value}))
    off = {name: value for name, value in base.items() if not name.endswith(("dropout", "softcapping"))}
    assert not notices(off)


# A decoder with every part at once, so that every field has something to change.
EVERYTHING = ModelConfig(
    model_type="any", vocab_size=31, hidden_size=12, intermediate_size=8, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=6, hidden_act="silu", norm="rms_norm", norm_eps=0.1, mlp="experts", num_experts=4,
    num_experts_per_tok=2, norm_topk_prob=True, qkv_bias=True, attention_out_bias=True, mlp_bias=False, qk_norm=True,
    post_norms=True, scale_embedding=True, query_pre_attn_scalar=9.0,
    final_logit_softcapping=3.0, layer_types=(SLIDING, FULL), sliding_window=5,
    rope=Rope(rope_type="default", rope_theta=100.0), local_rope=Rope(rope_type="default", rope_theta=10.0),
    initializer_range=0.3, tie_word_embeddings=True,
)  # fmt: skip
DENSE = dataclasses.replace(EVERYTHING, mlp="gated", num_experts=0, num_experts_per_tok=0, norm_topk_prob=False)

# field -> another value of it; the base is EVERYTHING, or what is named in BASES.
OTHER = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 10, "num_attention_heads": 2, "num_key_value_heads": 4,
    "head_dim": 8, "hidden_act": "gelu", "norm": "rms_norm_offset", "norm_eps": 0.2, "mlp": "plain",
    "num_experts": 5, "num_experts_per_tok": 3, "norm_topk_prob": False, "qkv_bias": False,
    "attention_out_bias": False, "mlp_bias": True, "qk_norm": False, "post_norms": False, "scale_embedding": False,
    "query_pre_attn_scalar": 16.0, "final_logit_softcapping": None,
    "layer_types": (FULL, SLIDING), "sliding_window": 3, "rope": Rope(rope_type="default", rope_theta=50.0),
    "local_rope": None, "initializer_range": 0.2, "tie_word_embeddings": False,
}  # fmt: skip
# Layers are counted twice, in their number and in their types.
TOGETHER = {"num_hidden_layers": {"num_hidden_layers": 3, "layer_types": (SLIDING, FULL, FULL)}}
BASES = {"mlp": DENSE, "mlp_bias": DENSE}
# A name: the decoder reads the other fields.
EXEMPT = {"model_type"}


def shapes(config):
    return jax.tree.map(lambda leaf: leaf.shape, abstract_params(config, "float32"))


@functools.cache
def params_of(config):
    """Initial parameters plus noise, so that norms and biases are not the identity."""
    leaves, structure = jax.tree.flatten(init_params(config, 0, "float32"))
    rng = np.random.default_rng(0)
    noisy = [leaf + 0.3 * rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves]
    return jax.tree.unflatten(structure, noisy)


@functools.cache
def logits(config, params_config):
    decoder, params = Decoder(config, COMPUTE), params_of(params_config)
    tokens, depth, until = np.arange(12)[None], np.arange(12)[None], np.full((1, 12), 12)
    return np.asarray(
        jax.jit(lambda params: decoder.logits(params, decoder.hidden(params, tokens, depth, until)))(params)
    )


def embedding(config):
    return init_params(config, 0, "float32")["embedding"]


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(ModelConfig)])
def test_every_field_changes_shapes_initial_values_or_outputs(field):
    if field in EXEMPT:
        pytest.skip("a name")
    base = BASES.get(field, EVERYTHING)
    other = dataclasses.replace(base, **TOGETHER.get(field, {field: OTHER.get(field, "no case in OTHER")}))
    if shapes(base) != shapes(other):
        return
    if field == "initializer_range":
        assert np.std(embedding(other)) < 0.9 * np.std(embedding(base))
        return
    assert np.abs(logits(other, base) - logits(base, base)).max() > 1e-3


def test_the_exempt_fields_do_not_act():
    other = dataclasses.replace(EVERYTHING, model_type="other")
    np.testing.assert_array_equal(logits(other, EVERYTHING), logits(EVERYTHING, EVERYTHING))
