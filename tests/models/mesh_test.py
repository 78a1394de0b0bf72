"""A model on a mesh computes what it computes on one device: outputs and gradients, for every kind of layer."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iterpref_jax.errors import UserError
from iterpref_jax.models import decoder as decoder_module
from iterpref_jax.models.decoder import Decoder
from iterpref_jax.models.transformer import init_params, param_shardings
from tests.support.forests import random_forest
from tests.support.meshes import placed
from tests.support.models import COMPUTE, model_config

EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, norm_topk_prob=True)
FAMILIES = {
    "starcoder2": dict(sliding_window=5),
    "gemma3_text": dict(sliding_window=5, sliding_window_pattern=2, query_pre_attn_scalar=8),
    "qwen3_moe": EXPERTS,
}
MESHES = [dict(data=2, fsdp=2, tensor=2), pytest.param(dict(data=1, fsdp=4, tensor=2), marks=pytest.mark.slow)]


@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_and_gradients_equal_one_device(family, mesh):
    config = model_config(model_type=family, **FAMILIES[family])
    assert_equals_one_device(config, mesh)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "tensor"),
    [
        pytest.param(4, 2, 2, id="heads split", marks=pytest.mark.slow),
        pytest.param(8, 2, 4, id="a key/value head on two devices", marks=pytest.mark.slow),
        pytest.param(6, 3, 2, id="uneven copies"),
        pytest.param(3, 1, 2, id="nothing divides", marks=pytest.mark.slow),
    ],
)
def test_a_kernel_on_each_device_gives_its_heads_and_rows(monkeypatch, heads, kv_heads, tensor):
    for name in ("choose", "tree_attention"):
        monkeypatch.setattr(decoder_module, name, functools.partial(getattr(decoder_module, name), interpret=True))
    fields = dict(num_attention_heads=heads, num_key_value_heads=kv_heads, num_hidden_layers=1)
    config = model_config(**fields, head_dim=8)
    assert_equals_one_device(config, dict(data=8 // tensor, fsdp=1, tensor=tensor), attention="tpu")


def test_a_kernel_that_the_devices_cannot_run_is_refused_before_anything_is_traced():
    with pytest.raises(UserError, match="'tpu' does not run on platform 'cpu'"):
        Decoder(model_config(), dataclasses.replace(COMPUTE, attention="tpu"))


def assert_equals_one_device(config, mesh, attention="xla"):
    """Hidden states and every gradient, of plain attention on one device and `attention` on a mesh."""
    params = init_params(config, 0, "float32")
    rng = np.random.default_rng(0)
    tokens = jnp.array(rng.integers(0, 97, (8, 16)))
    # What padding gives is nobody's business, and differs: no padding.
    forests = [random_forest(rng, 16, padding=1) for _ in range(8)]
    until, depth = (jnp.array([forest[i] for forest in forests]) for i in (0, 1))

    def value(decoder):
        def total(p):
            hidden = decoder.hidden(p, tokens, depth, until)
            return jnp.sum(jnp.sin(hidden)), hidden

        return jax.jit(jax.value_and_grad(total, has_aux=True))

    (_, expected), expected_grads = value(Decoder(config, COMPUTE))(params)
    compute = dataclasses.replace(COMPUTE, attention=attention)
    placement = placed(**mesh)
    sharded = jax.device_put(params, param_shardings(config, "float32", placement))
    (_, found), grads = value(Decoder(config, compute, placement))(sharded)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected_grads))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5 * scale), grads, expected_grads)
