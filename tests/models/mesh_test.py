"""A model on a mesh computes what it computes on one device: outputs and gradients, for every kind of layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iterpref_jax.models.decoder import Decoder
from iterpref_jax.models.transformer import init_params, param_shardings
from iterpref_jax.parallel.mesh import MeshSettings, make_mesh
from iterpref_jax.parallel.rules import Placement
from tests.support.models import COMPUTE, model_config

EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, norm_topk_prob=True)
FAMILIES = {
    "starcoder2": dict(sliding_window=5),
    "gemma3_text": dict(sliding_window=5, sliding_window_pattern=2, query_pre_attn_scalar=8),
    "qwen3_moe": EXPERTS,
}
MESHES = [dict(data=2, fsdp=2, tensor=2), dict(data=1, fsdp=4, tensor=2)]


@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_and_gradients_equal_one_device(family, mesh):
    config = model_config(model_type=family, **FAMILIES[family])
    params = init_params(config, 0, "float32")
    tokens = jnp.array(np.random.default_rng(0).integers(0, 97, (8, 16)))
    depth, until = jnp.broadcast_to(jnp.arange(16), (8, 16)), jnp.full((8, 16), 16)

    def value(decoder):
        def total(p):
            hidden = decoder.hidden(p, tokens, depth, until)
            return jnp.sum(jnp.sin(hidden)), hidden

        return jax.jit(jax.value_and_grad(total, has_aux=True))

    (_, expected), expected_grads = value(Decoder(config, COMPUTE))(params)
    placement = Placement(make_mesh(MeshSettings(**mesh)))
    sharded = jax.device_put(params, param_shardings(config, "float32", placement))
    (_, found), grads = value(Decoder(config, COMPUTE, placement))(sharded)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected_grads))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5 * scale), grads, expected_grads)
