"""Loading, saving and numerical parity with `transformers` on tiny random checkpoints."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iterpref_jax.errors import UserError
from iterpref_jax.models import hf_checkpoint
from iterpref_jax.models.transformer import Compute, Decoder

torch = pytest.importorskip("torch", reason="parity tests need torch: pip install 'iterpref_jax[parity]'")
transformers = pytest.importorskip("transformers")

COMPUTE = Compute(compute_dtype="float32", remat="full", attention="xla")

LLAMA = dict(
    vocab_size=97, hidden_size=36, intermediate_size=56, num_hidden_layers=3, num_attention_heads=6,
    num_key_value_heads=2, rms_norm_eps=1e-5, max_position_embeddings=64, attention_dropout=0.0,
)  # fmt: skip

CASES = {
    "llama": (transformers.LlamaConfig, LLAMA),
    "llama_biased_odd_head_dim": (
        transformers.LlamaConfig,
        LLAMA | dict(head_dim=10, attention_bias=True, mlp_bias=True, tie_word_embeddings=True, rope_theta=5e5),
    ),
    "llama_one_kv_head": (transformers.LlamaConfig, LLAMA | dict(num_key_value_heads=1)),
    "qwen2": (transformers.Qwen2Config, LLAMA | dict(rope_parameters={"rope_type": "default", "rope_theta": 1e6})),
    "qwen2_tied": (transformers.Qwen2Config, LLAMA | dict(tie_word_embeddings=True, num_key_value_heads=6)),
}


def torch_model(name):
    kind, fields = CASES[name]
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(kind(**fields), dtype=torch.float32)
    with torch.no_grad():
        # Fresh biases are 0 and norms 1: noise makes a swapped or forgotten one visible.
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(params=CASES)
def pair(request, tmp_path):
    model = torch_model(request.param)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    config, params = hf_checkpoint.load(str(tmp_path), "float32")
    return model, Decoder(config, COMPUTE), params, tmp_path


def one_tree(length, rows=2, vocab=97):
    tokens = np.random.default_rng(0).integers(0, vocab, (rows, length))
    return tokens, np.tile(np.arange(length), (rows, 1)), np.full((rows, length), length)


def test_hidden_states_of_every_layer_and_logits_equal_transformers(pair):
    model, decoder, params, _ = pair
    tokens, depth, until = one_tree(17)
    with torch.no_grad():
        expected = model(torch.tensor(tokens), output_hidden_states=True)
    ours = decoder.layer_states(params, tokens, depth, until)
    assert len(ours) == len(expected.hidden_states)
    for layer, theirs in enumerate(expected.hidden_states):
        np.testing.assert_allclose(ours[layer], theirs.numpy(), atol=2e-5, rtol=1e-4, err_msg=f"layer {layer}")
    np.testing.assert_allclose(decoder.logits(params, ours[-1]), expected.logits.numpy(), atol=5e-5, rtol=1e-4)


def test_gradients_of_every_weight_equal_transformers(pair):
    model, decoder, params, folder = pair
    tokens, depth, until = one_tree(11)
    labels = torch.tensor(tokens)
    loss = torch.nn.functional.cross_entropy(model(labels).logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    loss.backward()

    def our_loss(params):
        logits = decoder.logits(params, decoder.hidden(params, tokens, depth, until))[:, :-1]
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.asarray(tokens)[:, 1:, None], -1).mean()

    value, gradient = jax.value_and_grad(our_loss)(params)
    np.testing.assert_allclose(value, loss.item(), rtol=1e-5)
    hf_checkpoint.save(
        str(folder / "gradient"), decoder.config, gradient, dtype="float32", copy_from=None, max_shard_gb=1
    )
    ours = hf_checkpoint._stored_tensors(folder / "gradient")
    for name, parameter in model.named_parameters():
        np.testing.assert_allclose(ours[name].open(), parameter.grad.numpy(), atol=2e-5, rtol=1e-3, err_msg=name)


def test_a_saved_folder_loads_in_transformers_with_equal_tensors(pair):
    model, decoder, params, folder = pair
    hf_checkpoint.save(str(folder / "out"), decoder.config, params, dtype="float32", copy_from=None, max_shard_gb=1e-5)
    assert (folder / "out" / "model.safetensors.index.json").exists()
    again = transformers.AutoModelForCausalLM.from_pretrained(folder / "out")
    for (name, expected), (_, got) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(expected, got), name
    tokens = torch.tensor(one_tree(9)[0])
    assert torch.equal(model(tokens).logits, again(tokens).logits)


def test_bfloat16_checkpoints_load_exactly(tmp_path):
    model = torch_model("qwen2").to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    _, params = hf_checkpoint.load(str(tmp_path), "float32")
    np.testing.assert_array_equal(params["embedding"], model.model.embed_tokens.weight.detach().float().numpy())


@pytest.fixture
def folder(tmp_path):
    torch_model("llama").save_pretrained(tmp_path)
    return tmp_path


def edit_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "lama"}, "did you mean 'llama'"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu' is not implemented"),
        ({"attention_multiplier": 2.0}, "'attention_multiplier' is not known"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}, "rope_type 'yarn'"),
        ({"attention_dropout": 0.1}, "attention_dropout is 0.1"),
        ({"num_key_value_heads": 4}, "multiple of num_key_value_heads"),
    ],
)
def test_a_config_that_is_not_implemented_is_refused_by_name(folder, fields, message):
    edit_config(folder, **fields)
    with pytest.raises(UserError, match=message):
        hf_checkpoint.load(str(folder), "float32")


def test_all_tensors_that_do_not_fit_are_listed_at_once(folder):
    edit_config(folder, num_hidden_layers=4, intermediate_size=60)
    with pytest.raises(UserError) as error:
        hf_checkpoint.load(str(folder), "float32")
    assert "missing model.layers.3.mlp.up_proj.weight" in str(error.value)
    assert "model.layers.0.mlp.down_proj.weight has shape [36, 56], expected [36, 60]" in str(error.value)


def test_a_truncated_weight_file_is_named(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        hf_checkpoint.load(str(folder), "float32")


def test_a_folder_without_a_model_says_what_it_should_hold(tmp_path):
    with pytest.raises(UserError, match=r"config\.json does not exist"):
        hf_checkpoint.load(str(tmp_path), "float32")


def test_the_fingerprint_changes_with_one_byte(folder):
    before = hf_checkpoint.fingerprint(str(folder))
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert hf_checkpoint.fingerprint(str(folder)) != before
