"""bfloat16, in which everybody trains, against float32 on the same weights: what must stay float32 inside stays so."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iterpref_jax.models.decoder import Decoder
from iterpref_jax.models.hf_config import from_hf
from iterpref_jax.models.transformer import init_params
from tests.support.model_configs import VARIANTS
from tests.support.models import COMPUTE

# One of each kind of norm, bias, rotation and attention; a mixture of experts may choose others by a last bit.
NAMES = ("qwen2", "qwen3", "llama_llama3", "starcoder2", "gemma", "gemma3_pattern")
TOKENS = 24
# So far out bfloat16 knows every 64th position only.
FIRST = 10_000


def differentiated(config, params, dtype):
    """Final states, log-probs of random targets and the gradients of their mean, in float64."""
    decoder = Decoder(config, dataclasses.replace(COMPUTE, compute_dtype=dtype))
    rng = np.random.default_rng(0)
    tokens_RT, target_RG = (jnp.asarray(rng.integers(0, config.vocab_size, (2, TOKENS)), jnp.int32) for _ in range(2))
    depth_RT = jnp.broadcast_to(FIRST + jnp.arange(TOKENS), (2, TOKENS))
    until_RT = jnp.full((2, TOKENS), TOKENS)
    source_RG, used_RG = jnp.broadcast_to(jnp.arange(TOKENS), (2, TOKENS)), jnp.ones((2, TOKENS), bool)

    def loss(params):
        hidden_RTD = decoder.hidden(params, tokens_RT, depth_RT, until_RT)
        logp_RG, _ = decoder.logps(params, hidden_RTD, source_RG, target_RG, used_RG)
        return logp_RG.mean(), (hidden_RTD, logp_RG)

    (_, found), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return jax.tree.map(lambda x: np.asarray(x, np.float64), (*found, grads))


def distance(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_is_float32_but_for_the_rounding_of_products(name):
    # Large weights: nearly uniform attention and distributions would hide what is wrong.
    config = from_hf(VARIANTS[name].config | {"initializer_range": 0.3})
    drawn = init_params(config, 0, "float32")
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), drawn)
    *exact, exact_grads = differentiated(config, params, "float32")
    *found, grads = differentiated(config, params, "bfloat16")
    for got, expected in zip(found, exact, strict=True):
        assert distance(got, expected) < 0.03
    for got, expected in zip(jax.tree.leaves(grads), jax.tree.leaves(exact_grads), strict=True):
        assert distance(got, expected) < 0.06
