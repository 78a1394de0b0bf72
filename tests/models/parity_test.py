"""Every family against `transformers`: hidden states of every layer and logits of the same weights, and export."""

import functools
import json

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity tests need torch: pip install 'iterpref_jax[parity]'")

import transformers  # noqa: E402

from iterpref_jax.models import hf_checkpoint, hf_config  # noqa: E402
from tests.support.model_configs import SHAPE, VARIANTS  # noqa: E402
from tests.support.torch_models import model_of, ours, torch_model, write_checkpoint  # noqa: E402

SEED = 1
# Longer than every window and every old context of VARIANTS.
TOKENS = np.random.default_rng(0).integers(0, SHAPE["vocab_size"], (2, 48))
BOUND = 1e-4
ACTS = 1e-3


def run(model, **forward):
    with torch.no_grad():
        return model(torch.tensor(TOKENS), output_hidden_states=True, use_cache=False, **forward)


@functools.cache
def expected(name):
    return run(torch_model(name, SEED))


@functools.cache
def got(name):
    decoder, params = ours(name, SEED)
    depth, until = np.tile(np.arange(TOKENS.shape[1]), (len(TOKENS), 1)), np.full(TOKENS.shape, TOKENS.shape[1])

    @jax.jit
    def states_and_logits(params):
        states = decoder.layer_states(params, TOKENS, depth, until)
        return states, decoder.logits(params, states[-1])

    return jax.tree.map(np.asarray, states_and_logits(params))


def assert_close(ours, theirs, name):
    """Within BOUND, both absolutely and of the largest number."""
    assert ours.shape == theirs.shape, name
    error = np.abs(ours - theirs).max()
    assert error <= BOUND * min(1.0, np.abs(theirs).max()), f"{name}: {error:.1e}"


@pytest.mark.parametrize("name", VARIANTS)
def test_hidden_states_of_every_layer_equal_those_of_transformers(name):
    theirs, (states, _) = expected(name).hidden_states, got(name)
    assert len(states) == len(theirs)
    for layer, state in enumerate(theirs):
        assert_close(states[layer], state.numpy(), f"layer {layer}")


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_equal_those_of_transformers(name):
    assert_close(got(name)[1], expected(name).logits.numpy(), name)


@pytest.mark.parametrize("name", VARIANTS)
def test_an_exported_folder_gives_transformers_the_same_logits(name, tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    write_checkpoint(folder, name, SEED)
    config, params = hf_checkpoint.load(str(folder), "float32")
    inert = hf_config.inert_fields(VARIANTS[name].config)
    hf_checkpoint.save(str(out), config, params, dtype="float32", copy_from=None, max_shard_gb=2e-5, inert=inert)
    assert len(list(out.glob("*.safetensors"))) > 1
    again = transformers.AutoModelForCausalLM.from_pretrained(out, attn_implementation="eager")
    assert torch.equal(run(again).logits, expected(name).logits)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_config_that_transformers_writes_reads_as_the_one_it_was_given(name, tmp_path):
    torch_model(name, SEED).config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert hf_config.from_hf(written) == hf_config.from_hf(VARIANTS[name].config)


def differs(name, config):
    """Whether torch's parameters, or its outputs from the same weights, differ under another config."""
    model, other = torch_model(name, SEED), model_of(config, SEED)
    shapes, others = ({key: value.shape for key, value in m.named_parameters()} for m in (model, other))
    if shapes != others:
        return True
    other.load_state_dict(model.state_dict())
    change = (run(other).logits - expected(name).logits).abs().max()
    assert change == 0 or change > ACTS, f"hardly changes the outputs: {change:.1e}"
    return bool(change)


def without(config, key):
    """The config without one setting, or with another value where the default is not legal beside the rest."""
    if key == "num_experts_per_tok":
        return config | {key: config[key] % 3 + 1}
    dropped = {key, "layer_types"} if key == "use_sliding_window" else {key}
    return {key: value for key, value in config.items() if key not in dropped}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_setting_of_a_variant_acts_in_transformers_and_the_idle_ones_do_not(name):
    variant = VARIANTS[name]
    still = [key for key in variant.acting if key not in SHAPE and not differs(name, without(variant.config, key))]
    assert not still
    assert not [key for key in variant.idle if differs(name, without(variant.config, key))]


def rope_dicts(config):
    """Every dict of rope settings in a config.json."""
    found = [config.get(key) or {} for key in ("rope_parameters", "rope_scaling")]
    return [inner for rope in found for inner in ([rope] if "factor" in rope or "rope_type" in rope else rope.values())]


@pytest.mark.parametrize("name", [name for name, variant in VARIANTS.items() if rope_dicts(variant.config)])
def test_every_number_of_a_rope_acts_in_transformers(name):
    config = json.loads(json.dumps(VARIANTS[name].config))
    still = []
    for rope in rope_dicts(config):
        for key, value in rope.items():
            if not isinstance(value, str):
                rope[key] = not value if isinstance(value, bool) else type(value)(value * 3)
                still += [] if differs(name, config) else [key]
                rope[key] = value
    assert not still


def test_eager_attention_applies_a_soft_cap_that_is_passed_to_it():
    """`transformers` does not pass it Gemma 3's attn_logit_softcapping (idle above); should it, the cap is to act."""
    model = torch_model("gemma3_pattern", SEED)
    cap = model.config.attn_logit_softcapping
    assert (run(model, softcap=cap).logits - expected("gemma3_pattern").logits).abs().max() > ACTS
