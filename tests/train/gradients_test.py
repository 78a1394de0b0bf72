"""Gradients over several microbatches: one sum in place, its dtype, and what stands beside it in memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from iterpref_jax import settings
from iterpref_jax.data.packing import Caps
from iterpref_jax.errors import UserError
from iterpref_jax.models.decoder import Decoder
from iterpref_jax.models.hf_config import from_hf
from iterpref_jax.models.lora import NO_LORA, Lora, joined, parted
from iterpref_jax.models.transformer import init_params
from iterpref_jax.objectives.preference import normalisers
from iterpref_jax.train import step as train_step
from iterpref_jax.train.compiled import compile_step
from iterpref_jax.train.optimizer import Optimizer
from tests.support import models
from tests.support.examples import random_examples
from tests.support.runs import CONFIG
from tests.support.virtual_chips import virtual_topology

OBJECTIVE = models.objective_settings("target_rpo")
LORA = Lora(rank=2, alpha=4.0, targets=("q_proj", "down_proj"), quantize="")


@functools.cache
def batch():
    return models.make_batch(random_examples(9, seed=4), models.row_settings(), OBJECTIVE)[0]


def model(dtype="float32", lora=NO_LORA, **fields):
    config = models.model_config(**fields)
    return Decoder(config, models.COMPUTE, lora=lora), init_params(config, 0, dtype, lora=lora)


def gradients(decoder, params, dtype="float32"):
    """The gradients of the real step, by an optimizer that changes nothing and whose state is the last gradient."""
    zeros = functools.partial(jax.tree.map, jnp.zeros_like)
    rule = optax.GradientTransformation(zeros, lambda gradients, state, params=None: (zeros(gradients), gradients))
    optimizer, schedule = Optimizer(rule), optax.constant_schedule(0.0)
    step = train_step.make_train_step(decoder, OBJECTIVE, optimizer, schedule, accumulate_dtype=dtype)
    return jax.jit(step)(train_step.init_state(optimizer, params), batch())[0].opt_state


def added_up(decoder, params):
    """The gradients of each microbatch, made whole and then added up in float32."""
    trained, frozen = parted(params)
    loss = train_step.make_loss(decoder, OBJECTIVE)
    # With the metrics, as in the step: a program without them rounds otherwise.
    grad = jax.value_and_grad(lambda trained, *rest: loss(joined(frozen, trained), *rest), has_aux=True)

    @jax.jit
    def run(trained, batch):
        norms = normalisers(OBJECTIVE, batch.pair_weight_RP, batch.nll_weight_RE)
        return models.accumulated(lambda micro: grad(trained, micro, norms), batch)

    return run(trained, batch())[1]


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "made",
    [
        pytest.param(dict(tie_word_embeddings=True), id="one table for both ends"),
        pytest.param(dict(dtype="bfloat16"), id="bfloat16 parameters", marks=SLOW),
        pytest.param(dict(lora=LORA), id="adapters", marks=SLOW),
        pytest.param(
            dict(model_type="qwen3_moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24),
            id="experts",
            marks=SLOW,
        ),
    ],
)
def test_a_sum_in_place_is_the_sum_of_the_microbatches_gradients(made):
    decoder, params = model(**made)
    jax.tree.map(np.testing.assert_array_equal, gradients(decoder, params), added_up(decoder, params))


@pytest.mark.slow
def test_a_sum_in_bfloat16_is_that_in_float32_to_its_rounding():
    decoder, params = model()
    exact, half = gradients(decoder, params), gradients(decoder, params, "bfloat16")
    used = int((batch().pair_weight_RP.sum((1, 2)) > 0).sum())
    assert used > 1
    # Every share and every sum is rounded by at most 2^-9 of it; no partial sum is larger than `bound`.
    for leaf, found in zip(jax.tree.leaves(exact), jax.tree.leaves(half), strict=True):
        bound = used * float(jnp.abs(leaf).max())
        np.testing.assert_allclose(found, leaf, atol=2 * used * 2**-9 * bound)
        assert found.dtype == jnp.float32
        assert jnp.all(found == found.astype(jnp.bfloat16))
    assert not all(map(np.array_equal, jax.tree.leaves(exact), jax.tree.leaves(half)))


@pytest.mark.slow
def test_beside_the_sum_there_is_no_second_copy_of_the_gradients():
    wide = ["model.init.vocab_size=512", "model.init.intermediate_size=2048", "model.init.num_hidden_layers=4"]
    words = ["data.path=none", "rows.rows_per_microbatch=8", *wide]
    run = settings.read_run(settings.load_config(CONFIG.removeprefix("--config="), words))
    caps, topology = Caps(tokens=128, targets=32, terms=32, pairs=2), virtual_topology()
    one, two = (
        compile_step(run, from_hf(run.model.init), caps, microbatches=count, topology=topology).memory
        for count in (1, 2)
    )
    assert two.temporaries - one.temporaries < one.params / 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer.master": True}, r"optimizer\.master has no effect on float32 parameters"),
        (
            {"optimizer.master": True, "model.param_dtype": "bfloat16", "model.lora.rank": 4},
            r"optimizer\.master has no effect on adapters",
        ),
        ({"optimizer.state_dtype": "float16"}, r"optimizer\.state_dtype must be"),
        ({"train.accumulate_dtype": "half"}, r"train\.accumulate_dtype must be"),
        ({"model.compute.remat": "save_atention"}, r"model\.compute\.remat .*did you mean 'save_attention'\?"),
    ],
)
def test_levers_that_do_nothing_or_do_not_exist_are_refused_by_name(changes, message):
    words = [f"{name}={value}" for name, value in ({"data.path": "none"} | changes).items()]
    with pytest.raises(UserError, match=message):
        settings.read_run(settings.load_config(CONFIG.removeprefix("--config="), words))
