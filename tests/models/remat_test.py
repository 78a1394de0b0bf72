"""What the backward pass keeps changes no gradient, and is what the names say; and where it lies."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iterpref_jax.models.decoder import Decoder
from iterpref_jax.models.remat import REMATS
from iterpref_jax.models.transformer import init_params
from tests.support.forests import random_forest
from tests.support.meshes import placed
from tests.support.models import COMPUTE, model_config

ROWS, TOKENS, LAYERS = 2, 128, 3
EXPERTS = dict(model_type="qwen3_moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24)


def traced(config, remat, placement=None):
    """The gradient of a sum over the final states, as a function of the parameters."""
    rng = np.random.default_rng(0)
    tokens = jnp.array(rng.integers(0, 97, (ROWS, TOKENS)))
    forests = [random_forest(rng, TOKENS, padding=1) for _ in range(ROWS)]
    until, depth = (jnp.array([forest[i] for forest in forests]) for i in (0, 1))
    decoder = Decoder(config, dataclasses.replace(COMPUTE, remat=remat, attention="cpu"), placement)
    return jax.grad(lambda params: jnp.sin(decoder.hidden(params, tokens, depth, until)).sum())


@pytest.fixture(scope="module", params=["qwen2", pytest.param("experts", marks=pytest.mark.slow)])
def model(request):
    config = model_config(**(EXPERTS if request.param == "experts" else {}), num_hidden_layers=LAYERS)
    params = init_params(config, 0, "float32")
    return config, params, jax.jit(traced(config, "none"))(params)


@pytest.mark.parametrize("remat", [name for name in REMATS if name != "none"])
def test_gradients_are_those_of_keeping_everything(model, remat):
    config, params, expected = model
    found = jax.jit(traced(config, remat))(params)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6 * scale), found, expected)


def kept(config, remat, placement):
    """Shapes (a layer's) of all float arrays that the forward loop stacks for the backward loop, and where they lie."""
    params = init_params(config, 0, "float32")
    forward = next(eqn for eqn in jax.make_jaxpr(traced(config, remat, placement))(params).jaxpr.eqns if is_layers(eqn))
    # The carry has no dim of layers.
    stacked = [var.aval for var in forward.outvars if var.aval.shape[:1] == (LAYERS,)]
    floats = [aval for aval in stacked if jnp.issubdtype(aval.dtype, jnp.floating)]
    return sorted((aval.shape[1:], str(aval.memory_space)) for aval in floats)


def is_layers(eqn):
    return eqn.primitive.name == "scan" and eqn.params["length"] == LAYERS


DEVICE, HOST = "MemorySpace.Device", "MemorySpace.Host"
INPUT = (ROWS, TOKENS, 32)
# Of 4 heads of 8 over 2 key/value heads: outputs, and log-sum-exps as the kernel for CPUs lays them out.
ATTENTION = [(ROWS, TOKENS, 4, 8), (ROWS, 2, 2, TOKENS)]
MLP = [(ROWS, TOKENS, 48)] * 2
# Queries, keys, values, and what attention gives; nobody needs what the MLP gives.
PRODUCTS = [(ROWS, TOKENS, 4, 8), (ROWS, TOKENS, 2, 8), (ROWS, TOKENS, 2, 8), INPUT]


# On a mesh attention, whose results have names, is computed by each device on its own.
@pytest.mark.parametrize(
    "mesh",
    [{}, *(pytest.param(mesh, marks=pytest.mark.slow) for mesh in ({"data": 2}, {"data": 2, "tensor": 2}))],
    ids=str,
)
@pytest.mark.parametrize(
    ("remat", "shapes", "where"),
    [
        ("full", [INPUT], DEVICE),
        ("save_attention", [INPUT, *ATTENTION], DEVICE),
        ("save_mlp", [INPUT, *MLP], DEVICE),
        ("save_attention_mlp", [INPUT, *ATTENTION, *MLP], DEVICE),
        ("save_products", [INPUT, *ATTENTION, *MLP, *PRODUCTS], DEVICE),
        ("offload", [INPUT], HOST),
        ("offload_attention_mlp", [INPUT, *ATTENTION, *MLP], HOST),
    ],
)
def test_the_forward_loop_keeps_what_the_name_says(remat, shapes, where, mesh):
    found = kept(model_config(num_hidden_layers=LAYERS), remat, placed(**mesh) if mesh else None)
    if "tensor" in mesh:
        # What each device keeps by itself is stacked along the rows, whichever dim was split.
        sizes = sorted(math.prod(shape) for shape, _ in found)
        assert (sizes, {place for _, place in found}) == (sorted(map(math.prod, shapes)), {where})
    else:
        assert found == sorted((shape, where) for shape in shapes)
