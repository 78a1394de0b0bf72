"""Runs that train adapters: what is saved, resumed and exported."""

import contextlib
import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

from iterpref_jax import settings
from iterpref_jax.codeflow import records
from iterpref_jax.data.build import build
from iterpref_jax.data.text_rules import load_tokenizer
from iterpref_jax.errors import UserError
from iterpref_jax.models import hf_checkpoint
from iterpref_jax.models.lora import NO_LORA
from iterpref_jax.models.transformer import init_params
from iterpref_jax.train import loop
from iterpref_jax.train.export import export, export_adapters
from iterpref_jax.train.loop import train
from iterpref_jax.train.restore import restore_params, tokenizer_folder
from iterpref_jax.train.run import open_run
from tests.data import tiny
from tests.support.models import model_config
from tests.support.runs import CONFIG, make_dataset, numbers, overrides

TARGETS = ("q_proj", "o_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="module")
def base(dataset, tmp_path_factory):
    """A small Qwen2 in bfloat16 that ends texts with token 7, with the dataset's tokenizer beside it."""
    folder = tmp_path_factory.mktemp("base")
    config = model_config(vocab_size=512, initializer_range=0.05, tie_word_embeddings=True)
    params = init_params(config, 5, "bfloat16")
    hf_checkpoint.save(
        str(folder),
        config,
        params,
        dtype="bfloat16",
        copy_from=str(dataset / "tokenizer"),
        max_shard_gb=1,
        inert={"eos_token_id": 7},
    )
    return folder


def open_adapted(dataset, base, workdir, **changes):
    lora = {"model.lora.rank": 4, "model.lora.targets": TARGETS, "model.path": base}
    fixed = {"train.steps": 3, "rows.rows_per_microbatch": 8, "optimizer.warmup": 0.0, "optimizer.learning_rate": 0.01}
    words = [flag.removeprefix("--config.") for flag in overrides(dataset, **(fixed | lora | changes))]
    config = settings.load_config(CONFIG.removeprefix("--config="), words)
    with config.unlocked():
        config.model.init = {}
    return open_run(settings.read_run(config), str(workdir)), settings.to_json(config)


@pytest.fixture(scope="module", params=["", pytest.param("nf4", marks=pytest.mark.slow)])
def finished(request, dataset, base, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    run, config = open_adapted(dataset, base, workdir, **{"model.lora.quantize": request.param})
    assert train(run, config).finished
    return run


def test_the_loss_falls_from_ln_2_and_the_base_is_the_reference(finished):
    lines = [json.loads(line) for line in (finished.workdir / "metrics.jsonl").read_text().splitlines()]
    evals = [line["preference_loss"] for line in lines if line["split"] == "eval"]
    assert evals[0] == pytest.approx(0.693147, abs=1e-6)
    assert evals[-1] < evals[0] - 1e-4


def test_a_checkpoint_holds_adapters_and_their_optimizer_alone(finished):
    folder = Path(finished.workdir) / "checkpoints"
    stored = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    adapters = finished.parameters() - sum(leaf.size for leaf in jax.tree.leaves(model_params(finished)))
    # A, B and two moments of each in float32, which Orbax writes twice where arrays are as small as here, and metadata
    # (shards, checksums); the base alone has 4 bytes x 40,000.
    assert stored < 2 * (2 * 3 * 4 * adapters + 40_000)


def model_params(run):
    return hf_checkpoint.load(run.model_folder, "float32")[1]


@pytest.mark.slow
def test_a_stopped_run_resumes_to_the_same_numbers(finished, dataset, base, tmp_path, monkeypatch):
    updates, update = [], loop.Trainer._update
    monkeypatch.setattr(loop.Trainer, "_update", lambda *words: updates.append(words) or update(*words))
    monkeypatch.setattr(loop, "stop_requested", lambda: contextlib.nullcontext(lambda: len(updates) == 1))
    changes = {"model.lora.quantize": finished.decoder.lora.quantize}
    assert train(*open_adapted(dataset, base, tmp_path, **changes)) == loop.Outcome(1, False)
    monkeypatch.undo()
    assert train(*open_adapted(dataset, base, tmp_path, **changes)) == loop.Outcome(3, True)
    assert numbers(tmp_path) == numbers(finished.workdir)


def test_an_export_has_merged_kernels_and_the_bytes_of_all_others(finished, base, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    export(finished, str(tmp_path / "hf"), step=None, dtype="", max_shard_gb=1)
    before, after = (safetensors.numpy.load_file(folder / "model.safetensors") for folder in (base, tmp_path / "hf"))
    changed = {name for name in before if before[name].tobytes() != after[name].tobytes()}
    assert changed == {name for name in before if name.split(".")[-2] in TARGETS and name.endswith("weight")}
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    tokens = np.random.default_rng(0).integers(0, 500, (1, 30))
    expected = model(torch.tensor(tokens)).logits.detach().numpy()
    np.testing.assert_allclose(logits(finished, tokens), expected, atol=1e-4)


def test_an_export_stops_where_its_base_does_and_where_the_training_data_did(finished, tmp_path):
    transformers = pytest.importorskip("transformers")
    export(finished, str(tmp_path / "hf"), step=None, dtype="", max_shard_gb=1)
    trained = finished.dataset.split("train")[0].chosen_ids[-1]
    assert transformers.GenerationConfig.from_pretrained(tmp_path / "hf").eos_token_id == [7, trained]
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["eos_token_id"] == [7, trained]


def test_a_base_without_the_chat_template_is_exported_with_the_datasets_tokenizer(dataset, base, tmp_path):
    tokenizer = load_tokenizer(str(dataset / "tokenizer"))
    tokenizer.chat_template = tiny.CHAT_TEMPLATE
    tokenizer.save_pretrained(tmp_path / "instruct")
    text = tiny.settings(tokenizer=str(tmp_path / "instruct"), template="chat")
    records.write_trajectories(tmp_path / "histories.jsonl", tiny.trajectories(8))
    built = build([tmp_path / "histories.jsonl"], tmp_path / "chat", tiny.build_settings("", text=text)).path
    run, _ = open_adapted(built, base, tmp_path / "run")
    assert tokenizer_folder(run) == str(built / "tokenizer")
    assert load_tokenizer(tokenizer_folder(run)).chat_template == tiny.CHAT_TEMPLATE
    raw, _ = open_adapted(dataset, base, tmp_path / "run")
    assert tokenizer_folder(raw) == str(base)


def logits(run, tokens):
    _, params = restore_params(run, None)
    depth, until = np.arange(30)[None], np.full((1, 30), 30)
    params, decoder = jax.device_get(params), run.decoder
    decoder = type(decoder)(decoder.config, decoder.compute, None, decoder.lora)
    return np.asarray(decoder.logits(params, decoder.hidden(params, tokens, depth, until)))


def test_a_peft_folder_loads_onto_the_base(finished, base, tmp_path):
    peft = pytest.importorskip("peft")
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    if finished.decoder.lora.quantize:
        pytest.skip("the base of a quantised run is not the one that transformers loads")
    export_adapters(finished, str(tmp_path / "peft"), step=None)
    # Biases, which lie beside kernels, have no adapters: vLLM refuses a folder that names other modules.
    about = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert sorted(about["target_modules"]) == sorted(TARGETS)
    stored = safetensors.numpy.load_file(tmp_path / "peft" / "adapter_model.safetensors")
    assert {name.split(".")[-3] for name in stored} == set(TARGETS)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(model, tmp_path / "peft").eval()
    tokens = np.random.default_rng(0).integers(0, 500, (1, 30))
    expected = model(torch.tensor(tokens)).logits.detach().numpy()
    np.testing.assert_allclose(logits(finished, tokens), expected, atol=1e-4)


@pytest.mark.slow
def test_a_run_on_eight_devices_gives_the_same_numbers(finished, dataset, base, tmp_path):
    mesh = {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2, "model.lora.quantize": finished.decoder.lora.quantize}
    assert train(*open_adapted(dataset, base, tmp_path, **mesh)).finished
    for got, expected in zip(numbers(tmp_path), numbers(finished.workdir), strict=True):
        assert got.pop("split") == expected["split"]
        # Before the first update every margin is 0 but for rounding, whose sign decides an accuracy.
        names = [name for name in got if not name.endswith("accuracies")]
        assert [got[name] for name in names] == pytest.approx([expected[name] for name in names], rel=2e-3, abs=2e-3)


def test_quantised_kernels_without_adapters_are_refused(dataset, base, tmp_path):
    with pytest.raises(UserError, match=r"model.lora.quantize = 'nf4' has no effect"):
        open_adapted(dataset, base, tmp_path, **{"model.lora.rank": 0, "model.lora.quantize": "nf4"})


def test_a_run_without_adapters_exports_none(finished, tmp_path):
    whole = dataclasses.replace(finished, decoder=dataclasses.replace(finished.decoder, lora=NO_LORA))
    with pytest.raises(UserError, match="trained every parameter"):
        export_adapters(whole, str(tmp_path / "out"), step=None)
