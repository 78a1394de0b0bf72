"""Peak memory of a process that loads a checkpoint: its shards and 1.3 of the largest stored tensor, no more."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes  # noqa: F401  (NumPy learns the name bfloat16)
import numpy as np
import pytest
import safetensors.numpy

ROOT = Path(__file__).parents[2]
# The largest tensor is 128 MiB, a stack of MLP kernels more, and so is that tensor as float32 where it is bfloat16: one
# hidden copy of any of these is over the bound.
SHAPE = {
    "model_type": "llama", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 12,
    "num_attention_heads": 8, "num_key_value_heads": 8, "tie_word_embeddings": True,
}  # fmt: skip
LARGEST = 1 << 27
SLACK = 1.3

SCRIPT = """
import sys
import jax
from iterpref_jax.models import hf_checkpoint
from iterpref_jax.parallel.mesh import ALL_DEVICES, make_mesh
from iterpref_jax.parallel.rules import Placement


def peak():
    # Unlike ru_maxrss, which a process inherits from the one that started it. Pages of file maps count in both.
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(status["VmHWM"].split()[0]) * 1024

folder, dtype, devices = sys.argv[1:]
placement = Placement(make_mesh(ALL_DEVICES)) if devices != "1" else None
jax.numpy.zeros(3).block_until_ready()
before = peak()
params = hf_checkpoint.load(folder, dtype, placement)[1]
grown = peak() - before
shards = [shard.data for leaf in jax.tree.leaves(params) for shard in leaf.addressable_shards]
print(grown, sum(shard.nbytes for shard in shards))
"""


def shapes(vocab):
    width, mlp = SHAPE["hidden_size"], SHAPE["intermediate_size"]
    yield "model.embed_tokens.weight", (vocab, width)
    yield "model.norm.weight", (width,)
    for layer in range(SHAPE["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        yield from ((f"{prefix}{name}_layernorm.weight", (width,)) for name in ("input", "post_attention"))
        yield from ((f"{prefix}self_attn.{name}_proj.weight", (width, width)) for name in "qkvo")
        yield from ((f"{prefix}mlp.{name}_proj.weight", (mlp, width)) for name in ("gate", "up"))
        yield f"{prefix}mlp.down_proj.weight", (width, mlp)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def folder(request, tmp_path_factory):
    out, dtype = tmp_path_factory.mktemp("large"), np.dtype(request.param)
    vocab = LARGEST // dtype.itemsize // SHAPE["hidden_size"]
    (out / "config.json").write_text(json.dumps(SHAPE | {"vocab_size": vocab}))
    numbers = np.random.default_rng(0).standard_normal(1 << 20, np.float32).astype(dtype)
    tensors = {name: np.resize(numbers, math.prod(shape)).reshape(shape) for name, shape in shapes(vocab)}
    assert max(tensor.nbytes for tensor in tensors.values()) == LARGEST
    safetensors.numpy.save_file(tensors, out / "model.safetensors")
    return out


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_takes_the_shards_and_little_more_than_one_stored_tensor(folder, dtype, devices):
    env = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, "-c", SCRIPT, str(folder), dtype, str(devices)]
    ended = subprocess.run(arguments, env=env, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    grown, shards = map(int, ended.stdout.split())
    assert grown > 0.9 * shards > LARGEST, "the peak was reached before anything was loaded"
    print(f"{dtype} on {devices}: shards and {(grown - shards) / LARGEST:.2f} of the largest stored tensor")
    assert grown <= shards + SLACK * LARGEST
