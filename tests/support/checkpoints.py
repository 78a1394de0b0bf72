"""Model folders of random tensors in the form in which they are stored, made without torch."""

import json

import jax
import ml_dtypes  # noqa: F401  (NumPy learns the name bfloat16)
import numpy as np
import safetensors.numpy
import transformers

from iterpref_jax.models import hf_checkpoint
from iterpref_jax.models.hf_config import from_hf
from iterpref_jax.models.transformer import abstract_params, init_params
from iterpref_jax.models.weights import weights
from tests.data import tiny
from tests.support.model_configs import VARIANTS

WORDS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def leaf_shape(config, weight):
    leaf = abstract_params(config, "float32")
    for key in weight.path:
        leaf = leaf[key]
    return leaf.shape


def random_tensors(raw, dtype="float32", seed=0):
    """Returns {stored name: tensor} of a model with this config.json; no two numbers of a tensor are equal."""
    config, rng, tensors = from_hf(raw), np.random.default_rng(seed), {}
    for weight in weights(config):
        shape = weight.to_hf(np.empty(leaf_shape(config, weight)[len(weight.stack) :], np.int8)).shape
        for name in weight.names(config):
            tensors[name] = rng.standard_normal(shape, np.float32).astype(dtype)
    return tensors


def expected_params(raw, tensors, dtype):
    """Returns {path: our leaf} of stored tensors, put together the plain way."""
    config, params = from_hf(raw), {}
    for weight in weights(config):
        parts = [weight.to_ours(tensors[name]).astype(dtype) for name in weight.names(config)]
        params[weight.path] = np.stack(parts).reshape(leaf_shape(config, weight))
    return params


def write_folder(folder, name="llama", dtype="float32", files=1, tensors=None, **fields):
    """Writes a folder of a variant of `model_configs`, in one file or in several with an index; returns its tensors."""
    raw = VARIANTS[name].config | fields
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(raw))
    tensors = random_tensors(raw, dtype) if tensors is None else tensors
    if files == 1:
        safetensors.numpy.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return tensors
    weight_map = {name: f"part-{number % files}.safetensors" for number, name in enumerate(tensors)}
    for file in sorted(set(weight_map.values())):
        part = {name: tensors[name] for name, place in weight_map.items() if place == file}
        safetensors.numpy.save_file(part, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return tensors


def stored_bytes(folder):
    """Returns {name: (dtype, shape, bytes)} of every tensor in the safetensors files of a folder."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        data = file.read_bytes()
        length = int.from_bytes(data[:8], "little")
        for name, entry in json.loads(data[8 : 8 + length]).items():
            if name != "__metadata__":
                begin, end = (8 + length + offset for offset in entry["data_offsets"])
                assert name not in found
                found[name] = (entry["dtype"], entry["shape"], data[begin:end])
    return found


def write_chat_model(found):
    """Writes a Qwen2 of random weights with a tokenizer that has a chat template; returns the folder."""
    empty = transformers.Qwen2Tokenizer(eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer = empty.train_new_from_iterator(tiny.CORPUS, 400, show_progress=False)
    tokenizer.chat_template = tiny.CHAT_TEMPLATE.replace("<|end|>", "<|im_end|>")
    tokenizer.save_pretrained(found)
    shape = dict(
        model_type="qwen2", vocab_size=512, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-6, tie_word_embeddings=True,
    )  # fmt: skip
    config = from_hf(shape)
    params = init_params(config, 0, "float32")
    hf_checkpoint.save(str(found), config, params, dtype="float32", copy_from=None, max_shard_gb=1)
    return found


def leaves(params):
    """The arrays of a tree by their names from its root."""
    return {
        tuple(str(key.key) for key in path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
