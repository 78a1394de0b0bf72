"""Tiny random `transformers` checkpoints, the same weights in our decoder, and our gradients by `transformers` name."""

import functools
import pathlib
import tempfile

import safetensors.numpy
import torch
import transformers

from iterpref_jax.models import hf_checkpoint
from iterpref_jax.models.transformer import Decoder
from tests.support.models import COMPUTE

# On models this small a second thread only waits, and next to XLA's threads it waits long.
torch.set_num_threads(1)

SHAPE = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "max_position_embeddings": 256, "attention_dropout": 0.0,
}  # fmt: skip
NOISE = 0.2
CONFIGS = {"llama": transformers.LlamaConfig, "qwen2": transformers.Qwen2Config}


def torch_model(family, seed):
    """A fresh model of random weights; equal arguments give equal weights."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[family](**SHAPE), dtype=torch.float32)
    with torch.no_grad():
        # Fresh biases are 0, norms 1 and distributions nearly uniform: noise makes a forgotten weight visible.
        for parameter in model.parameters():
            parameter.add_(NOISE * torch.randn_like(parameter))
    return model.eval()


@functools.cache
def ours(family, seed):
    """`torch_model(family, seed)` as (decoder, params), through a saved checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        torch_model(family, seed).save_pretrained(folder)
        config, params = hf_checkpoint.load(folder, "float32")
    return Decoder(config, COMPUTE), params


def by_hf_name(decoder, params):
    """Our parameters (or their gradients) as {name in `transformers`: array}."""
    with tempfile.TemporaryDirectory() as folder:
        hf_checkpoint.save(folder, decoder.config, params, dtype="float32", copy_from=None, max_shard_gb=1)
        return safetensors.numpy.load_file(pathlib.Path(folder) / "model.safetensors")
