"""Config files as the hub and `transformers` write them: each is read, and none of its keys is silently ignored."""

import json
import math

import jax
import pytest
import transformers

from iterpref_jax.errors import UserError
from iterpref_jax.models.config import FULL, SLIDING
from iterpref_jax.models.families import FAMILIES
from iterpref_jax.models.hf_config import from_hf, inert_fields, to_hf
from iterpref_jax.models.rope import Rope
from iterpref_jax.models.transformer import abstract_params
from tests.support.model_configs import VARIANTS
from tests.support.real_configs import FILES, PARAMETERS


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_the_hub_gives_a_model_of_the_published_size(name):
    params = abstract_params(from_hf(FILES[name]), "bfloat16")
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == PARAMETERS[name]


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_the_hub_is_written_back_equal(name):
    config = from_hf(FILES[name])
    assert from_hf(to_hf(config)) == config


def read(name):
    return from_hf(FILES[name])


def test_deepseek_coder_is_read_with_linear_rope():
    rope = read("deepseek-ai/deepseek-coder-6.7b-base").rope
    assert rope == Rope(rope_type="linear", rope_theta=100000.0, scaling=(("factor", 4.0),))


def test_llama_3_1_is_read_with_its_own_rope():
    rope = read("meta-llama/Llama-3.1-8B").rope
    assert (rope.rope_type, rope.rope_theta) == ("llama3", 500000.0)
    assert dict(rope.scaling) == {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


@pytest.mark.parametrize(("name", "layers"), [("mistralai/Mistral-7B-v0.1", 32), ("bigcode/starcoder2-3b", 30)])
def test_mistral_and_starcoder2_have_a_window_in_every_layer(name, layers):
    config = read(name)
    assert (config.layer_types, config.sliding_window) == ((SLIDING,) * layers, 4096)


@pytest.mark.parametrize(
    "name", ["Qwen/Qwen2.5-Coder-7B", "Qwen/Qwen2.5-0.5B", "Qwen/Qwen3-8B", "Qwen/Qwen3-Coder-30B-A3B-Instruct"]
)
def test_qwens_window_is_off_whatever_its_size(name):
    config = read(name)
    assert (set(config.layer_types), config.sliding_window) == ({FULL}, None)


@pytest.mark.parametrize(("name", "layers"), [("google/gemma-3-270m", 18), ("google/gemma-3-1b-it", 26)])
def test_gemma_3_has_five_local_layers_before_every_global_one(name, layers):
    config = read(name)
    assert config.layer_types == tuple(FULL if layer % 6 == 5 else SLIDING for layer in range(layers))
    assert (config.rope.rope_theta, config.sliding_window) == (1e6, 512)
    assert config.local_rope is not None
    assert config.local_rope.rope_theta == 1e4


def test_codegemmas_gelu_is_the_approximation():
    config = read("google/codegemma-7b-it")
    assert (config.hidden_act, config.qk_norm, config.post_norms) == ("gelu_pytorch_tanh", False, False)
    assert (config.scale_embedding, config.query_pre_attn_scalar) == (True, 256)


# Another legal value of every key that `transformers` writes and whose type does not say one.
OTHERS = {
    "model_type": "mistral",
    "hidden_act": "relu",
    "hidden_activation": "relu",
    "layer_types": None,
    "mlp_only_layers": [0],
    "head_dim": 16,
    "sliding_window": 3,
    "attn_logit_softcapping": 7.0,
    "final_logit_softcapping": 7.0,
    "rope_scaling": {"type": "linear", "factor": 7.0},
    "num_key_value_heads": 1,
    "rope_parameters": None,
    "use_bidirectional_attention": True,
}


def other_value(key, value):
    if key in OTHERS:
        return OTHERS[key]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value * 2
    raise AssertionError(f"{key} = {value!r} needs another value in OTHERS")


def reads(config, key):
    """Whether another value of `key` is refused or gives another ModelConfig."""
    try:
        return from_hf(config | {key: other_value(key, config[key])}) != from_hf(config)
    except UserError:
        return True


def written_by_transformers(config, folder):
    """The whole file that `transformers` writes for this config, every default in it."""
    (folder / "config.json").write_text(json.dumps(config))
    transformers.AutoConfig.from_pretrained(folder).save_pretrained(folder)
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_key_that_transformers_writes_is_read_refused_or_known_to_be_inert(model_type, tmp_path):
    variants = [variant.config for variant in VARIANTS.values() if variant.model_type == model_type]
    written = [written_by_transformers(config, tmp_path) for config in variants]
    inert = set().union(*(inert_fields(file) for file in written))
    for key in sorted(set().union(*written) - inert):
        # A key may act under or without another one only, as a window under its switch: it has to act somewhere.
        files = [file for file in (*written, *variants) if key in file]
        assert any(reads(file, key) for file in files), f"{key} is accepted and not read"


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_inert_keys_are_not_read(model_type, tmp_path):
    file = written_by_transformers(
        next(variant.config for variant in VARIANTS.values() if variant.model_type == model_type), tmp_path
    )
    kept = {key: value for key, value in file.items() if key not in inert_fields(file) or key == "model_type"}
    assert from_hf(kept) == from_hf(file)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_key_left_out_means_what_transformers_means_by_it(model_type, tmp_path):
    shape = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    base = next(variant.config for variant in VARIANTS.values() if variant.model_type == model_type)
    # Heads for the families' own numbers of key/value heads, and experts for their own choice.
    least = {"model_type": model_type} | {key: base[key] for key in shape} | {"num_attention_heads": 32}
    least |= {"hidden_size": 64}
    assert from_hf(least) == from_hf(written_by_transformers(least, tmp_path))
