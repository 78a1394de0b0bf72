"""Tiny random `transformers` checkpoints, the same weights in our decoder, and our gradients by `transformers` name."""

import functools
import json
import pathlib
import tempfile

import safetensors.numpy
import torch
import transformers

from iterpref_jax.models import hf_checkpoint
from iterpref_jax.models.decoder import Decoder
from tests.support.model_configs import VARIANTS
from tests.support.models import COMPUTE

# On models this small a second thread only waits, and next to XLA's threads it waits long.
torch.set_num_threads(1)

NOISE = 0.2


def model_of(config, seed):
    """A fresh model of random weights from the content of a config.json; equal arguments give equal weights."""
    with tempfile.TemporaryDirectory() as folder:
        (pathlib.Path(folder) / "config.json").write_text(json.dumps(config))
        config = transformers.AutoConfig.from_pretrained(folder)
    torch.manual_seed(seed)
    # Eager: the one implementation that applies every setting, soft caps among them.
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        # Fresh biases are 0, norms 1 and distributions nearly uniform: noise makes a forgotten weight visible.
        for parameter in model.parameters():
            parameter.add_(NOISE * torch.randn_like(parameter))
    return model.eval()


def torch_model(name, seed):
    """`model_of` a variant of `model_configs`."""
    return model_of(VARIANTS[name].config, seed)


def write_checkpoint(folder, name, seed):
    """Writes `torch_model(name, seed)` in several shards, with config.json spelled as the variant spells it."""
    torch_model(name, seed).save_pretrained(folder, max_shard_size="20KB")
    (pathlib.Path(folder) / "config.json").write_text(json.dumps(VARIANTS[name].config))


@functools.cache
def ours(name, seed):
    """`torch_model(name, seed)` as (decoder, params), through a saved checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(folder, name, seed)
        config, params = hf_checkpoint.load(folder, "float32")
    return Decoder(config, COMPUTE), params


def by_hf_name(decoder, params):
    """Our parameters (or their gradients) as {name in `transformers`: array}."""
    with tempfile.TemporaryDirectory() as folder:
        hf_checkpoint.save(folder, decoder.config, params, dtype="float32", copy_from=None, max_shard_gb=1)
        return stored(folder)


def gradients_by_hf_name(model):
    """The gradients of a torch model under the names of a checkpoint, which splits what `transformers` 5 fuses."""
    for parameter in model.parameters():
        parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return stored(folder)


def stored(folder):
    """The tensors of all safetensors files of a folder."""
    files = sorted(pathlib.Path(folder).glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in safetensors.numpy.load_file(file).items()}
