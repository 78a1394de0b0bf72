"""The model that `sample`, `serve` and `eval` run, opened from a run's folder or a model's."""

import argparse
import contextlib
import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import pytest

from iterpref_jax import settings
from iterpref_jax.__main__ import main
from iterpref_jax.cli import model
from iterpref_jax.cli.stored import to_store
from iterpref_jax.errors import UserError
from iterpref_jax.models import hf_checkpoint
from iterpref_jax.models.hf_config import to_hf
from iterpref_jax.models.lora import parted
from iterpref_jax.models.transformer import init_params
from iterpref_jax.train.checkpoint import Checkpoints
from iterpref_jax.train.run import open_run
from iterpref_jax.train.step import TrainState
from tests.support.models import model_config
from tests.support.runs import CONFIG, ROOT, make_dataset, overrides

BASE = f"{ROOT}/configs/base.py"
SPEC = CONFIG.removeprefix("--config=")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="module")
def workdir(dataset, tmp_path_factory):
    return saved_run(dataset, tmp_path_factory.mktemp("run"))


def saved_run(dataset, folder, **changes):
    """What a run leaves behind, without its training: config.json and a checkpoint of step 1."""
    config = settings.load_config(SPEC, [flag.removeprefix("--config.") for flag in overrides(dataset, **changes)])
    if config.model.path:
        with config.unlocked():
            config.model.init = {}
    run, stored = open_run(settings.read_run(config), str(folder), training=False), to_store(config)
    state = TrainState(jnp.int32(1), parted(run.load_params())[0], {}, {})
    with contextlib.closing(Checkpoints(str(folder / "checkpoints"), keep=1, writing=True)) as checkpoints:
        checkpoints.save(1, state, {"config": stored, "fingerprint": run.fingerprint})
    (folder / "config.json").write_text(json.dumps(stored))
    return folder


def opened(workdir, *words):
    chosen = argparse.Namespace(config=SPEC, model="", workdir=str(workdir), step=None)
    config = model.load_config(chosen, list(words))
    return model.open_model(chosen, config, list(words))


def test_a_run_is_computed_as_its_own_config_says_and_otherwise_as_the_words_of_the_command_say(workdir):
    own = opened(workdir, "decode.slots=3").decoder
    assert own.compute.compute_dtype == "float32"
    assert own.placement.mesh.shape["fsdp"] == jax.device_count()
    other = opened(workdir, "model.compute.compute_dtype=bfloat16", "mesh.fsdp=4", "mesh.tensor=2").decoder
    assert other.compute.compute_dtype == "bfloat16"
    assert (other.placement.mesh.shape["fsdp"], other.placement.mesh.shape["tensor"]) == (4, 2)


def test_words_that_would_make_another_model_of_a_run_are_refused_by_name(workdir):
    with pytest.raises(UserError, match=r"--config.model.lora.rank=4 has no effect with --workdir"):
        opened(workdir, "model.lora.rank=4")


def test_a_run_keeps_whole_paths_of_local_folders_and_names_of_hubs_and_buckets_as_they_are(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    for word, kept in (("here", str(tmp_path / "here")), ("Org/Name", "Org/Name"), ("gs://B/data", "gs://B/data")):
        config = settings.load_config(SPEC.removesuffix(":tiny"), [f"data.path={word}", f"model.path={word}"])
        assert [to_store(config)[section]["path"] for section in ("data", "model")] == [kept, kept]


def test_a_run_is_opened_from_any_folder_and_after_its_dataset_has_moved(dataset, tmp_path, monkeypatch, capsys):
    moved, elsewhere = tmp_path / "moved", tmp_path / "elsewhere"
    shutil.copytree(dataset, tmp_path / "data")
    elsewhere.mkdir()
    monkeypatch.chdir(tmp_path)
    run = saved_run("data", tmp_path / "run")
    monkeypatch.chdir(elsewhere)
    assert opened(run).name == "run"
    (tmp_path / "data").rename(moved)
    assert main(["export", f"--workdir={run}", f"--out={elsewhere / 'model'}"]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert f"{tmp_path / 'data'} is not there: it is data.path of the run {run}; say where it is now" in said
    assert main(["export", f"--workdir={run}", "--out=model", f"--config.data.path={moved}"]) == 0
    assert (elsewhere / "model" / "model.safetensors").exists()
    assert opened(run, f"data.path={moved}").load().keys() == {"embedding", "layers", "norm"}


def test_export_takes_no_other_words(workdir, tmp_path, capsys):
    assert main(["export", f"--workdir={workdir}", f"--out={tmp_path / 'out'}", "--config.model.lora.rank=4"]) == 1
    assert "only data.path and model.path can be other" in " ".join(capsys.readouterr().err.split())


def test_adapters_are_not_put_on_another_base_than_they_were_trained_on(dataset, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    shape = model_config(vocab_size=512)
    for seed, folder in enumerate((first, second)):
        params, own = init_params(shape, seed, "float32"), str(dataset / "tokenizer")
        hf_checkpoint.save(str(folder), shape, params, dtype="float32", copy_from=own, max_shard_gb=1)
    run = saved_run(dataset, tmp_path / "run", **{"model.lora.rank": 2, "model.path": first})
    with pytest.raises(UserError, match=r"second holds other weights than the model whose adapters .*run trained"):
        opened(run, f"model.path={second}").load()
    shutil.copytree(first, tmp_path / "copy")
    assert "embedding" in opened(run, f"model.path={tmp_path / 'copy'}").load()


@pytest.mark.parametrize(("param_dtype", "kernels"), [("float32", "bfloat16"), ("bfloat16", "bfloat16")])
def test_a_folder_is_read_no_wider_than_it_is_computed(tmp_path, param_dtype, kernels):
    params = init_params(model_config(), 0, "float32")
    hf_checkpoint.save(str(tmp_path), model_config(), params, dtype="float32", copy_from=None, max_shard_gb=1)
    chosen = argparse.Namespace(config=BASE, model=str(tmp_path), workdir="", step=None)
    config = model.load_config(chosen, [f"model.param_dtype={param_dtype}"])
    read = model.open_model(chosen, config, []).load()
    assert (read["embedding"].dtype, jax.tree.leaves(read["norm"])[0].dtype) == (kernels, param_dtype)


@pytest.mark.parametrize(
    ("chat", "said"), [(False, ""), (True, "template = raw, and is asked with chat messages: leave --chat out")]
)
def test_a_run_that_is_asked_in_another_form_than_it_was_trained_in_is_told_of(workdir, capsys, chat, said):
    opened(workdir).warn_of_prompts(chat=chat, remedy="leave --chat out")
    told = capsys.readouterr().err
    assert bool(told) == bool(said)
    assert said in told


def test_a_system_message_that_a_run_was_trained_with_and_is_asked_without_is_told_of(workdir, capsys):
    found = opened(workdir)
    rules = dataclasses.replace(found.rules, template="chat", system="You write Python.")
    for chat in (True, False):
        dataclasses.replace(found, rules=rules).warn_of_prompts(chat=chat, remedy="give --chat")
        said = "trained with build.text.system = 'You write Python.', which is not sent" in capsys.readouterr().err
        assert said == chat


def test_plain_prompts_that_lack_the_separator_of_training_are_told_of(workdir, capsys):
    found = opened(workdir)
    found.warn_of_separator(["Do.\n"])
    assert not capsys.readouterr().err
    found.warn_of_separator(["Do.\n", "Do."])
    assert "build.text.raw_separator = '\\n', and 1 of 2 prompts do not end with it" in capsys.readouterr().err


def test_answers_of_a_run_end_where_those_of_its_records_and_of_its_model_end(dataset, tmp_path):
    shape, own = model_config(vocab_size=512), tmp_path / "own"
    params, tokenizer = init_params(shape, 0, "float32"), str(dataset / "tokenizer")
    hf_checkpoint.save(str(own), shape, params, dtype="float32", copy_from=tokenizer, max_shard_gb=1)
    (own / "generation_config.json").write_text('{"eos_token_id": [3, 4]}')
    found = opened(saved_run(dataset, tmp_path / "run", **{"model.path": own}))
    assert found.rules is not None
    assert {*found.rules.eos_ids[-1:], 3, 4} <= set(found._end_tokens())


def test_a_folder_of_one_gguf_file_has_its_tokenizer_and_its_ends(tmp_path, monkeypatch):
    (tmp_path / "model.gguf").write_bytes(b"")
    content = to_hf(model_config(vocab_size=100)) | {"eos_token_id": 7}
    monkeypatch.setattr(hf_checkpoint.gguf_checkpoint, "config_json", lambda file: content)
    chosen = argparse.Namespace(config=BASE, model=str(tmp_path), workdir="", step=None)
    found = model.open_model(chosen, model.load_config(chosen, []), [])
    assert (found.tokenizer_folder, found.ends) == (str(tmp_path / "model.gguf"), (7,))


def test_a_model_folder_takes_the_place_of_the_shape_that_a_config_makes(tmp_path):
    shape = model_config(vocab_size=100)
    params = init_params(shape, 0, "float32")
    hf_checkpoint.save(str(tmp_path), shape, params, dtype="float32", copy_from=None, max_shard_gb=1)
    chosen = argparse.Namespace(config=SPEC, model=str(tmp_path), workdir="", step=None)
    assert model.open_model(chosen, model.load_config(chosen, []), []).decoder.config.vocab_size == 100


def test_a_shape_beside_a_model_folder_is_refused(tmp_path):
    chosen = argparse.Namespace(config=SPEC, model=str(tmp_path), workdir="", step=None)
    with pytest.raises(UserError, match=r"--config.model.init.hidden_size=8 has no effect with --model"):
        model.load_config(chosen, ["model.init.hidden_size=8"])


def test_an_export_into_the_folder_of_another_leaves_nothing_that_would_go_before_it(workdir, tmp_path):
    out = tmp_path / "model"
    out.mkdir()
    stale = ("chat_template.jinja", "generation_config.json", "adapter_config.json", "adapter_model.safetensors")
    for name in stale:
        (out / name).write_text('{"eos_token_id": 5}')
    (out / "README.md").write_text("mine")
    assert main(["export", f"--workdir={workdir}", f"--out={out}"]) == 0
    assert not [name for name in stale if name != "generation_config.json" and (out / name).exists()]
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] != 5
    assert (out / "README.md").read_text() == "mine"


def test_adapters_are_not_written_beside_a_whole_model(dataset, tmp_path, capsys):
    shape, own = model_config(vocab_size=512), tmp_path / "own"
    params, tokenizer = init_params(shape, 0, "float32"), str(dataset / "tokenizer")
    hf_checkpoint.save(str(own), shape, params, dtype="float32", copy_from=tokenizer, max_shard_gb=1)
    run, out = saved_run(dataset, tmp_path / "run", **{"model.lora.rank": 2, "model.path": own}), tmp_path / "out"
    assert main(["export", f"--workdir={run}", f"--out={out}"]) == 0
    assert main(["export", f"--workdir={run}", f"--out={out}", "--adapters"]) == 1
    assert "holds a whole model" in capsys.readouterr().err
