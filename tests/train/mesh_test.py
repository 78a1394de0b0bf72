"""On every mesh, loss, metrics, gradients and scores of the whole objective are those of one device."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from iterpref_jax.models.decoder import Decoder
from iterpref_jax.models.lora import NO_LORA, Lora
from iterpref_jax.models.transformer import init_params, param_shardings
from iterpref_jax.train import step as train_step
from tests.support import models
from tests.support.examples import random_examples
from tests.support.meshes import placed
from tests.support.models import COMPUTE, loss_and_grads, make_batch, objective_settings, row_settings
from tests.train.acceptance_test import assert_trees_close

EXAMPLES = random_examples(9, seed=4)
MODELS = {
    # 8 query heads over 2 key/value heads: copies wherever heads are split further.
    "grouped": dict(num_attention_heads=8),
    "tied": dict(num_attention_heads=8, tie_word_embeddings=True),
    "experts": dict(
        model_type="qwen3_moe", num_experts=8, num_experts_per_tok=2, moe_intermediate_size=24, norm_topk_prob=True,
    ),
    "windows": dict(
        model_type="gemma3_text", sliding_window=5, sliding_window_pattern=2, query_pre_attn_scalar=8,
        tie_word_embeddings=True,
    ),
    "plain": dict(model_type="starcoder2", sliding_window=5),
}  # fmt: skip
FAST = [("tied", dict(data=2, fsdp=2, tensor=2))]
SLOW = [
    ("grouped", dict(sequence=4, tensor=2)),
    ("grouped", dict(fsdp=8)),
    ("experts", dict(fsdp=2, expert=2, sequence=2)),
    ("grouped", dict(data=8)),
    ("grouped", dict(fsdp=2, tensor=4)),
    ("grouped", dict(sequence=8)),
    ("grouped", dict(fsdp=2, sequence=2, tensor=2)),
    ("tied", dict(fsdp=2, tensor=4)),
    ("tied", dict(data=4, sequence=2)),
    ("tied", dict(fsdp=8)),
    ("windows", dict(fsdp=2, sequence=4)),
    ("plain", dict(data=2, sequence=4)),
    ("experts", dict(expert=8)),
    ("experts", dict(fsdp=4, expert=2)),
    ("experts", dict(data=2, expert=2, sequence=2)),
    ("experts", dict(expert=4, tensor=2)),
    ("experts", dict(fsdp=4, sequence=2)),
]
LORA = Lora(rank=4, alpha=8.0, targets=("q_proj", "v_proj", "gate_proj", "down_proj"), quantize="")


@functools.cache
def batch_of(balance):
    objective = objective_settings(router_aux_loss_coef=balance)
    return objective, make_batch(EXAMPLES, row_settings(tokens=72, rows_per_microbatch=8), objective)[0]


def balance_of(model):
    return 0.02 if model == "experts" else 0.0


@functools.cache
def params_of(model, lora):
    params = init_params(models.model_config(**MODELS[model]), 0, "float32", lora=lora)
    if not lora.rank:
        return params
    # Fresh adapters change nothing, and half of their gradients are 0.
    return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), params)


@functools.cache
def on_one_device(model, lora):
    decoder = Decoder(models.model_config(**MODELS[model]), COMPUTE, None, lora)
    objective, batch = batch_of(balance_of(model))
    return loss_and_grads(decoder, params_of(model, lora), batch, objective)


def on_mesh(model, sizes, lora, **compute):
    """The decoder, and its parameters and batch in their places."""
    placement = placed(**sizes)
    decoder = Decoder(models.model_config(**MODELS[model]), dataclasses.replace(COMPUTE, **compute), placement, lora)
    batch = batch_of(balance_of(model))[1]
    params = jax.device_put(params_of(model, lora), param_shardings(decoder.config, "float32", placement, lora))
    return decoder, params, jax.device_put(batch, train_step.batch_shardings(batch, placement))


def assert_equals_one_device(model, sizes, lora=NO_LORA, **compute):
    decoder, params, batch = on_mesh(model, sizes, lora, **compute)
    loss, metrics, grads = loss_and_grads(decoder, params, batch, batch_of(balance_of(model))[0])
    expected = on_one_device(model, lora)
    np.testing.assert_allclose(loss, expected[0], rtol=1e-5)
    assert_trees_close(metrics, expected[1], rtol=1e-4, atol=1e-5)
    assert_trees_close(grads, expected[2], rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize(("model", "sizes"), FAST, ids=str)
def test_a_mesh_gives_the_loss_and_gradients_of_one_device(model, sizes):
    assert_equals_one_device(model, sizes)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "sizes"), SLOW, ids=str)
def test_every_mesh_gives_the_loss_and_gradients_of_one_device(model, sizes):
    assert_equals_one_device(model, sizes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "sizes"),
    [("grouped", dict(fsdp=2, sequence=2, tensor=2)), ("experts", dict(expert=4, sequence=2))],
    ids=str,
)
@pytest.mark.parametrize("lora", [NO_LORA, LORA], ids=["whole", "adapters"])
def test_kernels_kept_logits_and_no_remat_change_nothing_on_a_mesh(model, sizes, lora):
    assert_equals_one_device(model, sizes, lora, attention="auto", logits_mb=64, remat="none")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "sizes"), [("grouped", dict(data=2, sequence=4)), ("experts", dict(expert=2, sequence=2))], ids=str
)
def test_reference_scores_on_a_mesh_are_those_of_one_device(model, sizes):
    decoder, params, batch = on_mesh(model, sizes, NO_LORA)
    alone = Decoder(decoder.config, COMPUTE)
    expected = models._score(alone)(params_of(model, NO_LORA), batch_of(balance_of(model))[1])
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(models._score(decoder)(params, batch), expected, rtol=1e-5, atol=1e-5)
