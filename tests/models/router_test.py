"""The router's load-balancing loss and its gradients against `transformers`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity tests need torch: pip install 'iterpref_jax[parity]'")

from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func  # noqa: E402

from iterpref_jax.models.experts import load_balance  # noqa: E402
from tests.support.model_configs import SHAPE, VARIANTS  # noqa: E402
from tests.support.torch_models import by_hf_name, gradients_by_hf_name, ours, torch_model  # noqa: E402

SEED = 1
MOES = [name for name, variant in VARIANTS.items() if variant.model_type == "qwen3_moe"]
TOKENS = np.random.default_rng(2).integers(0, SHAPE["vocab_size"], (3, 20))
# Padding on the right: that of no row, of some columns, of most of a row.
IS_TOKEN = np.arange(20) < np.array([[20], [13], [4]])
DEPTH, UNTIL = np.tile(np.arange(20), (3, 1)), np.where(IS_TOKEN, IS_TOKEN.sum(1, keepdims=True), 0)


@functools.cache
def expected(name):
    model = torch_model(name, SEED)
    mask = torch.tensor(IS_TOKEN, dtype=torch.long)
    out = model.model(torch.tensor(TOKENS), attention_mask=mask, output_router_logits=True, use_cache=False)
    config = model.config
    loss = torch.as_tensor(
        load_balancing_loss_func(out.router_logits, config.num_experts, config.num_experts_per_tok, mask)
    )
    loss.backward()
    return loss.item(), gradients_by_hf_name(model)


@functools.cache
def got(name):
    decoder, params = ours(name, SEED)

    @jax.jit
    @jax.value_and_grad
    def loss_and_gradients(params):
        _, routing = decoder.hidden_and_routing(params, TOKENS, DEPTH, UNTIL)
        return load_balance(routing, jnp.asarray(IS_TOKEN), decoder.config.num_experts_per_tok)

    loss, gradients = loss_and_gradients(params)
    return float(loss), by_hf_name(decoder, gradients)


@pytest.mark.parametrize("name", MOES)
def test_the_load_balancing_loss_equals_that_of_transformers(name):
    np.testing.assert_allclose(got(name)[0], expected(name)[0], rtol=1e-5)


@pytest.mark.parametrize("name", MOES)
def test_every_gradient_of_the_load_balancing_loss_equals_torchs(name):
    wanted, gradients = expected(name)[1], got(name)[1]
    assert gradients.keys() == wanted.keys()
    for key, theirs in wanted.items():
        np.testing.assert_allclose(
            gradients[key], theirs, rtol=0, atol=1e-4 * max(np.abs(theirs).max(), 1e-3), err_msg=key
        )


@pytest.mark.parametrize("name", MOES)
def test_padding_does_not_count(name):
    decoder, params = ours(name, SEED)
    other = np.where(IS_TOKEN, TOKENS, (TOKENS + 1) % SHAPE["vocab_size"])

    def loss(tokens):
        routing = decoder.hidden_and_routing(params, tokens, DEPTH, UNTIL)[1]
        return load_balance(routing, jnp.asarray(IS_TOKEN), decoder.config.num_experts_per_tok)

    np.testing.assert_array_equal(loss(other), loss(TOKENS))
