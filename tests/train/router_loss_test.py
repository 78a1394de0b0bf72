"""The router's loss is added with its weight, and refused where there are no experts."""

import jax
import numpy as np
import pytest

from iterpref_jax.errors import UserError
from iterpref_jax.models.experts import load_balance
from tests.support.examples import random_examples
from tests.support.models import loss_and_grads, make_batch, objective_settings, row_settings, tiny
from tests.train.loop_test import dataset, run  # noqa: F401

EXPERTS = dict(model_type="qwen3_moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24)


@pytest.mark.slow
def test_the_loss_is_the_preference_loss_plus_its_weight_times_the_balance_of_each_microbatch():
    decoder, params = tiny(**EXPERTS)
    plain, weighted = objective_settings(), objective_settings(router_aux_loss_coef=0.3)
    batch, packed = make_batch(random_examples(6), row_settings(), plain)
    loss, _, grads = loss_and_grads(decoder, params, batch, plain)
    total, metrics, other = loss_and_grads(decoder, params, batch, weighted)
    expected = 0.0
    for number, trees in enumerate(packed):
        micro = jax.tree.map(lambda x, number=number: x[number], batch)
        routing = decoder.hidden_and_routing(params, micro.tokens_RT, micro.depth_RT, micro.visible_until_RT)[1]
        expected += float(load_balance(routing, micro.visible_until_RT > 0, 2)) * len(trees) / 6
    assert len(packed) > 1
    np.testing.assert_allclose(metrics["router_aux_loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(total, loss + 0.3 * expected, rtol=1e-5)
    router = "layers", "mlp", "router"
    changed, before = other, grads
    for key in router:
        changed, before = changed[key], before[key]
    assert np.abs(changed - before).max() > 1e-5


def test_rows_a_microbatch_are_given_where_the_routers_loss_is_of_a_microbatch(dataset, tmp_path):  # noqa: F811
    with pytest.raises(UserError, match=r"rows\.rows_per_microbatch is 0.*give a number"):
        run(dataset, tmp_path, **{"objective.router_aux_loss_coef": 0.1, "rows.rows_per_microbatch": 0})


def test_a_weight_of_the_routers_loss_without_experts_is_refused(dataset, tmp_path):  # noqa: F811
    with pytest.raises(UserError, match="router_aux_loss_coef has no effect on qwen2"):
        run(dataset, tmp_path, **{"objective.router_aux_loss_coef": 0.1})
