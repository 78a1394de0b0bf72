"""GGUF files load as the Hugging Face folders that they were made from, and what is not supported is named."""

import sys

import jax
import numpy as np
import pytest

gguf = pytest.importorskip("gguf", reason="needs gguf: pip install 'iterpref_jax[gguf]'")

from iterpref_jax.errors import UserError  # noqa: E402
from iterpref_jax.models import gguf_file, hf_checkpoint  # noqa: E402
from iterpref_jax.models.gguf_checkpoint import config_json, stored_tensors  # noqa: E402
from iterpref_jax.models.gguf_file import read_gguf  # noqa: E402
from iterpref_jax.models.hf_config import from_hf  # noqa: E402
from tests.support.checkpoints import expected_params, leaves, random_tensors, stored_bytes  # noqa: E402
from tests.support.gguf_models import CONFIGS, KINDS, converted, write_gguf  # noqa: E402
from tests.support.meshes import placed  # noqa: E402


def write(path, name, kind=KINDS.F32, change=None, **fields):
    raw = CONFIGS[name] | fields
    tensors = random_tensors(raw)
    write_gguf(path, raw, tensors, kind, change)
    return raw, tensors


@pytest.mark.parametrize("name", CONFIGS)
def test_every_family_loads_as_it_was_before_its_conversion(name, tmp_path):
    raw, tensors = write(tmp_path / "model.gguf", name)
    config, params = hf_checkpoint.load(str(tmp_path / "model.gguf"), "float32")
    assert config == from_hf(raw)
    got, expected = leaves(params), expected_params(raw, tensors, "float32")
    assert got.keys() == expected.keys()
    for path, value in expected.items():
        # Gemma's norms were rounded when llama.cpp added 1.
        shifted = raw["model_type"] in ("gemma", "gemma3_text") and any("norm" in key for key in path)
        np.testing.assert_allclose(got[path], value, rtol=0, atol=2.5e-7 if shifted else 0, err_msg=".".join(path))


def test_a_folder_with_one_gguf_file_is_that_model(tmp_path):
    write(tmp_path / "model.gguf", "qwen2")
    by_file, by_folder = (hf_checkpoint.load(str(path), "float32") for path in (tmp_path / "model.gguf", tmp_path))
    assert by_file[0] == by_folder[0]
    assert all(map(np.array_equal, jax.tree.leaves(by_file[1]), jax.tree.leaves(by_folder[1])))


def test_token_ids_and_context_length_are_kept_for_generation(tmp_path):
    write(tmp_path / "model.gguf", "qwen2")
    config = config_json(tmp_path / "model.gguf")
    assert (config["eos_token_id"], config["max_position_embeddings"]) == (3, 256)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q5_1", "F16", "BF16"])
@pytest.mark.parametrize("sizes", [None, dict(data=1, fsdp=2, tensor=2)])
@pytest.mark.parametrize("name", ["llama", pytest.param("qwen3_moe", marks=pytest.mark.slow)])
def test_blocks_of_a_quantised_tensor_dequantise_as_the_whole(name, sizes, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(hf_checkpoint, "BLOCK_BYTES", 1 << 10)
    monkeypatch.setattr(gguf_file, "_PIECE", 64)
    raw = CONFIGS[name] | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    tensors, kind = random_tensors(raw), KINDS[kind]
    write_gguf(tmp_path / "model.gguf", raw, tensors, kind)
    placement = placed(**sizes) if sizes else None
    got = leaves(hf_checkpoint.load(str(tmp_path / "model.gguf"), "float32", placement)[1])
    rounded = {
        name: gguf.quants.dequantize(gguf.quants.quantize(array, kind), kind) if array.ndim > 1 else array
        for name, array in tensors.items()
    }
    for path, value in expected_params(raw, rounded, "float32").items():
        np.testing.assert_array_equal(got[path], value, err_msg=".".join(path))


def test_the_header_reads_as_the_package_reads_it(tmp_path):
    write(tmp_path / "model.gguf", "llama", KINDS.Q8_0)
    ours, theirs = read_gguf(tmp_path / "model.gguf"), gguf.GGUFReader(tmp_path / "model.gguf")
    assert {name: (t.begin, t.nbytes, t.shape[::-1], t.kind) for name, t in ours.tensors.items()} == {
        t.name: (t.data_offset, t.n_bytes, tuple(t.shape), t.tensor_type.value) for t in theirs.tensors
    }
    fields = {key: field.contents() for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert ours.fields.keys() == fields.keys()
    for key, value in fields.items():
        strings = isinstance(value, list) and isinstance(value[0], str)
        expected = len(value) if strings else value if isinstance(value, str) else pytest.approx(value, 1e-6)
        assert ours.fields[key] == expected, key


def test_a_gguf_base_is_exported_as_safetensors_with_every_tensor(tmp_path):
    raw, tensors = write(tmp_path / "model.gguf", "llama", KINDS.Q8_0)
    config, params = hf_checkpoint.load(str(tmp_path / "model.gguf"), "float32")
    names = set(tensors)
    hf_checkpoint.save(
        str(tmp_path / "out"), config, params, dtype="float32", copy_from=None, max_shard_gb=1, untouched=names,
        source=str(tmp_path / "model.gguf"),
    )  # fmt: skip
    assert stored_bytes(tmp_path / "out").keys() == names
    again = hf_checkpoint.load(str(tmp_path / "out"), "float32")
    assert again[0] == config
    assert all(map(np.array_equal, jax.tree.leaves(again[1]), jax.tree.leaves(params)))


def add(method, *arguments):
    return lambda writer: getattr(writer, method)(*arguments)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("llama", add("add_uint32", "llama.expert_count", 8), r"llama\.expert_count = 8, which is not supported"),
        ("qwen2", add("add_float32", "qwen2.logit_scale", 2.0), r"qwen2\.logit_scale = 2\.0, which is not supported"),
        ("qwen2", add("add_sliding_window", 8), r"qwen2\.attention\.sliding_window, which is not supported"),
        ("qwen2", add("add_rope_dimension_count", 8), r"qwen2\.rope\.dimension_count = 8; supported: .* 16"),
        ("qwen2", add("add_value_length", 8), r"qwen2\.attention\.value_length = 8; supported"),
        ("qwen2", add("add_causal_attention", False), "no causal model"),
        ("qwen2", add("add_uint16", "split.count", 3), "one part of a split model; join the parts"),
        ("qwen2", add("add_rope_scaling_type", gguf.RopeScalingType.LONGROPE), r"no qwen2\.rope\.scaling\.factor"),
        ("qwen2_yarn", add("add_float32", "qwen2.rope.scaling.yarn_ext_factor", 0.5), "yarn_ext_factor = 0.5"),
        ("llama", add("add_tensor", "rope_freqs.weight", np.full(8, 2.0, np.float32)), "are not those of Llama 3.1"),
        ("llama_linear", add("add_tensor", "rope_freqs.weight", np.ones(8, np.float32)), "both rope_freqs.weight and"),
    ],
)
def test_hyperparameters_that_are_not_supported_are_named(name, change, message, tmp_path):
    write(tmp_path / "model.gguf", name, change=change)
    with pytest.raises(UserError, match=message):
        hf_checkpoint.load(str(tmp_path / "model.gguf"), "float32")


@pytest.mark.parametrize("key", ["block_count", "attention.head_count"])
def test_a_missing_hyperparameter_is_named(key, tmp_path):
    def forget(writer):
        del writer.kv_data[0][f"qwen2.{key}"]

    write(tmp_path / "model.gguf", "qwen2", change=forget)
    with pytest.raises(UserError, match=key if "head" in key else "num_hidden_layers"):
        hf_checkpoint.load(str(tmp_path / "model.gguf"), "float32")


def test_another_architecture_is_named_with_those_that_are_supported(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "qwen2vl")
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    with pytest.raises(UserError, match=r"architecture 'qwen2vl'; supported: llama, qwen2.*did you mean 'qwen2'"):
        config_json(tmp_path / "model.gguf")


def test_tensors_that_do_not_fit_are_all_listed(tmp_path):
    def add_two(writer):
        writer.add_tensor("blk.0.ssm_a.weight", np.zeros(4, np.float32))
        writer.add_tensor("blk.0.ffn_up.bias", np.zeros(4, np.float32))
        del writer.tensors[0]["blk.1.attn_v.weight"]

    write(tmp_path / "model.gguf", "qwen2", change=add_two)
    with pytest.raises(UserError) as error:
        hf_checkpoint.load(str(tmp_path / "model.gguf"), "float32")
    for line in (
        "missing model.layers.1.self_attn.v_proj.weight",
        "unexpected blk.0.ssm_a.weight",
        "unexpected model.layers.0.mlp.up_proj.bias",
    ):
        assert line in str(error.value)


def test_tensors_of_whole_numbers_are_named_with_their_type(tmp_path):
    raw = CONFIGS["qwen2"]
    tensors = random_tensors(raw) | {"model.norm.weight": np.ones(64, np.int32)}
    write_gguf(tmp_path / "model.gguf", raw, tensors)
    with pytest.raises(UserError, match=r"model\.norm\.weight in model\.gguf has dtype I32"):
        hf_checkpoint.load(str(tmp_path / "model.gguf"), "float32")


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.3, 0.9])
def test_a_truncated_file_is_named(kept, tmp_path):
    write(tmp_path / "model.gguf", "qwen2")
    data = (tmp_path / "model.gguf").read_bytes()
    (tmp_path / "model.gguf").write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(UserError, match=r"model\.gguf is truncated"):
        hf_checkpoint.load(str(tmp_path / "model.gguf"), "float32")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"GGML" + bytes(40), "no GGUF file"), (b"GGUF\x01\x00\x00\x00" + bytes(40), "version 1; versions 2 and 3")],
)
def test_another_format_is_named(content, message, tmp_path):
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_gguf(tmp_path / "model.gguf")


def test_without_the_package_the_error_says_how_to_install_it(tmp_path, monkeypatch):
    write(tmp_path / "model.gguf", "qwen2")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"pip install 'iterpref_jax\[gguf\]'"):
        hf_checkpoint.load(str(tmp_path / "model.gguf"), "float32")


def test_the_names_of_our_table_cover_what_the_package_calls_them(tmp_path):
    for name, raw in CONFIGS.items():
        tensors = random_tensors(raw)
        write_gguf(tmp_path / f"{name}.gguf", raw, tensors)
        assert stored_tensors(tmp_path / f"{name}.gguf").keys() == tensors.keys(), name
        assert "None" not in "".join(converted(raw, tensors))
