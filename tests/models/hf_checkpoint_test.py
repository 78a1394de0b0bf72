"""Folders in and out: any source into any mesh, what does not fit is named, and exports are whole."""

import json
import os

import jax
import numpy as np
import pytest
import safetensors.numpy

from iterpref_jax.errors import UserError
from iterpref_jax.models import hf_checkpoint, safetensors_file
from iterpref_jax.models.hf_config import from_hf
from iterpref_jax.models.weights import weights
from tests.support.checkpoints import WORDS, expected_params, random_tensors, stored_bytes, write_folder
from tests.support.meshes import placed
from tests.support.model_configs import VARIANTS

FAMILIES = ("llama", "qwen3_moe_top2", "starcoder2", "gemma3_layer_types")
DTYPES = ("float32", "float16", "bfloat16")
MESH = dict(data=2, fsdp=2, tensor=2)
MESHES = [dict(data=1, fsdp=1, tensor=1), dict(data=1, fsdp=8, tensor=1), dict(data=1, fsdp=2, tensor=4)]


def flat(params, path=()):
    for name, value in params.items():
        if isinstance(value, dict):
            yield from flat(value, (*path, name))
        else:
            yield (*path, name), value


def assert_equal(params, expected):
    params = dict(flat(params))
    assert params.keys() == expected.keys()
    for path, value in expected.items():
        assert params[path].dtype == value.dtype
        np.testing.assert_array_equal(np.asarray(params[path]), value, err_msg=".".join(path))


def placement(sizes):
    return None if sizes is None else placed(**sizes)


@pytest.fixture
def small_blocks(monkeypatch):
    """Tensors of many blocks, where a tiny model would have only tensors of one."""
    monkeypatch.setattr(hf_checkpoint, "BLOCK_BYTES", 1 << 8)


def save(folder, config, params, dtype="float32", **arguments):
    hf_checkpoint.save(str(folder), config, params, **(dict(dtype=dtype, copy_from=None, max_shard_gb=1) | arguments))


CASES = [
    *[(name, None) for name in FAMILIES],
    *[pytest.param(name, MESH, marks=pytest.mark.slow) for name in FAMILIES],
    *[("llama", sizes) for sizes in MESHES],
]


@pytest.mark.parametrize(("name", "sizes"), CASES)
def test_every_family_loads_into_every_mesh(name, sizes, tmp_path, small_blocks):
    tensors = write_folder(tmp_path, name, files=3)
    config, params = hf_checkpoint.load(str(tmp_path), "float32", placement(sizes))
    assert config == from_hf(VARIANTS[name].config)
    assert_equal(params, expected_params(VARIANTS[name].config, tensors, "float32"))


@pytest.mark.parametrize("files", [1, 4])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("source", DTYPES)
def test_every_stored_dtype_loads_as_every_parameter_dtype(source, dtype, files, tmp_path):
    tensors = write_folder(tmp_path, "llama", source, files)
    _, params = hf_checkpoint.load(str(tmp_path), dtype)
    assert_equal(params, expected_params(VARIANTS["llama"].config, tensors, dtype))


def test_the_head_that_a_tied_checkpoint_stores_as_well_is_left_out(tmp_path):
    raw = VARIANTS["llama"].config | {"tie_word_embeddings": True}
    tensors = random_tensors(raw)
    write_folder(tmp_path, tie_word_embeddings=True, tensors=tensors | {"lm_head.weight": tensors["model.norm.weight"]})
    _, params = hf_checkpoint.load(str(tmp_path), "float32")
    assert "head" not in params
    assert_equal(params, expected_params(raw, tensors, "float32"))


def test_all_tensors_that_do_not_fit_are_listed_at_once(tmp_path):
    tensors = random_tensors(VARIANTS["llama"].config)
    del tensors["model.layers.1.mlp.up_proj.weight"], tensors["lm_head.weight"]
    tensors["model.layers.0.mlp.down_proj.weight"] = np.zeros((32, 47), np.float32)
    tensors["model.layers.0.self_attn.q_proj.weight"] = np.zeros((32, 32), np.int8)
    tensors["model.layers.2.mlp.up_proj.weight"] = np.zeros((48, 32), np.float32)
    write_folder(tmp_path, tensors=tensors)
    with pytest.raises(UserError) as error:
        hf_checkpoint.load(str(tmp_path), "float32")
    message = str(error.value)
    assert message.startswith(str(tmp_path))
    for line in (
        "missing lm_head.weight",
        "missing model.layers.1.mlp.up_proj.weight",
        "unexpected model.layers.2.mlp.up_proj.weight",
        "model.layers.0.mlp.down_proj.weight has shape [32, 47], expected [32, 48]",
        "model.layers.0.self_attn.q_proj.weight in model.safetensors has dtype I8, supported: F32, F16, BF16",
    ):
        assert line in message
    assert len(message.splitlines()) == 6


def test_a_long_list_of_problems_is_cut_and_counted(tmp_path):
    write_folder(tmp_path, num_hidden_layers=9, tensors=random_tensors(VARIANTS["llama"].config))
    with pytest.raises(UserError, match=r"and 23 more"):
        hf_checkpoint.load(str(tmp_path), "float32")


def test_float8_tensors_are_named_with_their_file(tmp_path):
    write_folder(tmp_path)
    file = tmp_path / "model.safetensors"
    data = file.read_bytes()
    # The same bytes under another dtype of the format: four numbers instead of one.
    name = b'"model.norm.weight":{"dtype":"F32","shape":[32]'
    assert data.count(name) == 1
    changed = data.replace(name, name.replace(b'"F32"', b'"F8_E4M3"').replace(b"[32]", b"[128]"))
    length = int.from_bytes(data[:8], "little") + len(changed) - len(data)
    file.write_bytes(length.to_bytes(8, "little") + changed[8:])
    with pytest.raises(UserError, match=r"model\.norm\.weight in model\.safetensors has dtype F8_E4M3"):
        hf_checkpoint.load(str(tmp_path), "float32")


def test_a_truncated_weight_file_is_named(tmp_path):
    write_folder(tmp_path, files=2)
    file = tmp_path / "part-1.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"part-1\.safetensors is damaged"):
        hf_checkpoint.load(str(tmp_path), "float32")


def test_a_folder_without_a_model_says_what_it_should_hold(tmp_path):
    with pytest.raises(UserError, match=r"config\.json does not exist"):
        hf_checkpoint.load(str(tmp_path), "float32")


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_was_loaded_is_saved_byte_for_byte_in_its_own_dtype(name, dtype, tmp_path):
    write_folder(tmp_path / "in", name, dtype, files=3)
    config, params = hf_checkpoint.load(str(tmp_path / "in"), "bfloat16" if dtype == "bfloat16" else "float32")
    save(tmp_path / "out", config, params, dtype, max_shard_gb=1e-5)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 3
    assert stored_bytes(tmp_path / "out") == stored_bytes(tmp_path / "in")


def test_sharded_parameters_are_saved_like_those_of_one_device(tmp_path, small_blocks):
    write_folder(tmp_path / "in", "qwen3_moe_top2")
    config, params = hf_checkpoint.load(str(tmp_path / "in"), "float32", placement(MESH))
    save(tmp_path / "out", config, params)
    assert stored_bytes(tmp_path / "out") == stored_bytes(tmp_path / "in")


def test_the_index_of_an_export_says_where_every_tensor_is(tmp_path):
    write_folder(tmp_path / "in")
    config, params = hf_checkpoint.load(str(tmp_path / "in"), "float32")
    save(tmp_path / "out", config, params, max_shard_gb=2e-5)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2
    assert files == [f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)]
    for name, file in index["weight_map"].items():
        assert name in safetensors.numpy.load_file(tmp_path / "out" / file)
    assert index["metadata"]["total_size"] == sum(len(data) for _, _, data in stored_bytes(tmp_path / "out").values())
    for file in files:
        held = sum(array.nbytes for array in safetensors.numpy.load_file(tmp_path / "out" / file).values())
        assert held <= 2e4 or list(index["weight_map"].values()).count(file) == 1
    # Another export over it leaves nothing of the first.
    save(tmp_path / "out", config, params)
    assert sorted(os.listdir(tmp_path / "out")) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_untouched_tensors_keep_bytes_and_dtype_whatever_the_rest_becomes(dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors_file, "COPY_BYTES", 100)
    write_folder(tmp_path / "in", "llama", dtype, files=2)
    config, params = hf_checkpoint.load(str(tmp_path / "in"), "float32")
    trained = "model.layers.1.self_attn.q_proj.weight"
    untouched = {name for weight in weights(config) for name in weight.names(config)} - {trained}
    params = jax.tree.map(lambda leaf: leaf + 1, params)
    save(tmp_path / "out", config, params, "float32", untouched=untouched, source=str(tmp_path / "in"))
    before, after = stored_bytes(tmp_path / "in"), stored_bytes(tmp_path / "out")
    assert before.keys() == after.keys()
    assert {name for name in after if after[name] != before[name]} == {trained}
    read = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    query = read[trained]
    np.testing.assert_array_equal(
        query, np.frombuffer(before[trained][2], np.dtype(dtype)).astype(np.float32).reshape(query.shape) + 1
    )
    assert after[trained][0] == WORDS["float32"]


def test_parameters_that_are_all_untouched_need_not_be_there(tmp_path):
    write_folder(tmp_path / "in", dtype="bfloat16")
    config = from_hf(VARIANTS["llama"].config)
    everything = {name for weight in weights(config) for name in weight.names(config)}
    save(tmp_path / "out", config, {}, untouched=everything, source=str(tmp_path / "in"))
    assert stored_bytes(tmp_path / "out") == stored_bytes(tmp_path / "in")


def test_a_leaf_may_be_made_tensor_by_tensor(tmp_path):
    write_folder(tmp_path / "in", "qwen3_moe_top2")
    config, params = hf_checkpoint.load(str(tmp_path / "in"), "float32")
    places = []

    def lazily(leaf):
        def one(place):
            places.append(place)
            return leaf[place] * 1

        return one

    save(tmp_path / "out", config, jax.tree.map(lazily, params))
    assert stored_bytes(tmp_path / "out") == stored_bytes(tmp_path / "in")
    # Embedding and head; norms and kernels of each layer; gate, up and down of each expert.
    depths = [len(place) for place in places]
    layers, experts = config.num_hidden_layers, config.num_experts
    assert depths.count(0) == 3
    assert depths.count(2) == 3 * layers * experts
    assert len(places) == len(stored_bytes(tmp_path / "in"))


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("at", [0, 1, 7, 20, "tokenizer"])
def test_an_interrupted_export_over_an_old_one_does_not_look_whole(at, tmp_path, monkeypatch):
    """Stopped at any tensor or at the tokenizer: the folder has no config.json, and the next export mends it."""
    write_folder(tmp_path / "in")
    config, params = hf_checkpoint.load(str(tmp_path / "in"), "float32")
    save(tmp_path / "out", config, params, max_shard_gb=2e-5)
    calls = []

    def stopping(leaf):
        def one(place):
            calls.append(place)
            if len(calls) > at:
                raise Interrupted
            return leaf[place]

        return one

    def stop(*_):
        raise Interrupted

    with monkeypatch.context() as patch:
        if at == "tokenizer":
            patch.setattr(hf_checkpoint, "_copy_tokenizer", stop)
        leaves = params if at == "tokenizer" else jax.tree.map(stopping, params)
        with pytest.raises(Interrupted):
            save(tmp_path / "out", config, leaves, max_shard_gb=1e-5, copy_from=str(tmp_path / "in"))
    assert not (tmp_path / "out" / "config.json").exists()
    with pytest.raises(UserError, match=r"config\.json does not exist"):
        hf_checkpoint.load(str(tmp_path / "out"), "float32")
    save(tmp_path / "out", config, params)
    assert not list((tmp_path / "out").glob("*.partial"))
    assert stored_bytes(tmp_path / "out") == stored_bytes(tmp_path / "in")


def test_tokenizer_and_generation_files_are_copied_and_inert_fields_kept(tmp_path):
    write_folder(tmp_path / "in")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "tokenizer.model", "README.md"):
        (tmp_path / "in" / name).write_text(name)
    config, params = hf_checkpoint.load(str(tmp_path / "in"), "float32")
    save(tmp_path / "out", config, params, "bfloat16", copy_from=str(tmp_path / "in"), inert={"eos_token_id": 7})
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "tokenizer.model"):
        assert (tmp_path / "out" / name).read_text() == name
    assert not (tmp_path / "out" / "README.md").exists()
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (written["eos_token_id"], written["dtype"], written["torch_dtype"]) == (7, "bfloat16", "bfloat16")
    assert from_hf(written) == config


def test_a_bfloat16_folder_saved_by_us_gives_transformers_the_same_tensors(tmp_path):
    torch = pytest.importorskip("torch", reason="needs torch: pip install 'iterpref_jax[parity]'")
    import transformers

    write_folder(tmp_path / "in", dtype="bfloat16")
    config, params = hf_checkpoint.load(str(tmp_path / "in"), "bfloat16")
    save(tmp_path / "out", config, params, "bfloat16", max_shard_gb=1e-5)
    models = [transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("in", "out")]
    for (name, expected), (_, got) in zip(*(model.named_parameters() for model in models), strict=True):
        assert expected.dtype == got.dtype == torch.bfloat16
        assert torch.equal(expected, got), name
