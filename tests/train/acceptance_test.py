"""The acceptance tests of focal compute: layouts, truncation and packing change nothing but the work."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iterpref_jax.data.layout import lay_out
from iterpref_jax.models.transformer import init_params
from iterpref_jax.objectives.preference import loss_and_metrics
from iterpref_jax.objectives.weights import RECIPES
from tests.support import models
from tests.support.examples import random_examples
from tests.support.meshes import placed
from tests.support.models import loss_and_grads, make_batch, objective_settings, per_pair_logps, row_settings

EXAMPLES = random_examples(9, seed=4)
WITH_FOCUS = next(example for example in EXAMPLES if example.rejected_focus.any() and example.chosen_focus.any())
LAYOUTS = [("separate", False), ("separate", True), ("shared", False), ("shared", True)]


def assert_trees_close(got, expected, rtol, atol):
    paths = jax.tree_util.tree_leaves_with_path(expected)
    for (path, want), have in zip(paths, jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(have, want, rtol=rtol, atol=atol, err_msg=jax.tree_util.keystr(path))


@functools.cache
def _logits(decoder):
    return jax.jit(lambda params, *inputs: decoder.logits(params, decoder.hidden(params, *inputs)))


@functools.cache
def direct_logps(record):
    """Log-probs of both completions from two plain causal sequences, nothing packed, shared or left out."""
    decoder, params = models.tiny()
    example, out = EXAMPLES[record], []
    for ids in (example.chosen_ids, example.rejected_ids):
        tokens = np.concatenate([example.prompt_ids, ids])[None]
        depth, until = np.arange(tokens.size)[None], np.full((1, tokens.size), tokens.size)
        logits = _logits(decoder)(params, tokens, depth, until)[0]
        logp = jax.nn.log_softmax(logits)[np.arange(tokens.size - 1), tokens[0, 1:]]
        out.append(np.asarray(logp[len(example.prompt_ids) - 1 :]))
    return out


@pytest.mark.parametrize(("layout", "truncate"), LAYOUTS)
@pytest.mark.parametrize("recipe", ["dpo", "target_rpo", "symmetric"])
def test_log_probs_equal_those_of_separate_unpadded_sequences(layout, truncate, recipe):
    decoder, params = models.tiny()
    objective, rows = objective_settings(recipe), row_settings(layout, truncate)
    packed = per_pair_logps(decoder, params, EXAMPLES, rows, objective)
    for record, example in enumerate(EXAMPLES):
        chosen, rejected = direct_logps(record)
        everything = {"dpo": (1, 1), "target_rpo": (1, example.rejected_focus)}
        masks = everything.get(recipe, (example.chosen_focus, example.rejected_focus))
        keep = [np.broadcast_to(mask, len(logp)) != 0 for mask, logp in zip(masks, (chosen, rejected), strict=True)]
        expected = np.concatenate([chosen[keep[0]], rejected[keep[1]]])
        np.testing.assert_allclose(packed[record], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("recipe", RECIPES)
def test_loss_and_every_gradient_are_equal_in_all_layouts(recipe):
    decoder, params = models.tiny()
    objective = objective_settings(recipe)
    reference = per_pair_logps(decoder, models.tiny(seed=1)[1], EXAMPLES, row_settings(), objective)
    results = []
    for layout, truncate in LAYOUTS:
        batch, _ = make_batch(EXAMPLES, row_settings(layout, truncate), objective, reference=reference)
        results.append(loss_and_grads(decoder, params, batch, objective))
    for loss, metrics, grads in results[1:]:
        np.testing.assert_allclose(loss, results[0][0], rtol=1e-5)
        assert_trees_close(metrics, results[0][1], rtol=1e-4, atol=1e-5)
        assert_trees_close(grads, results[0][2], rtol=1e-4, atol=2e-6)


def test_changing_weights_never_changes_hidden_states():
    decoder, params = models.tiny()
    rows = row_settings(truncate=False)
    hidden = {}
    for recipe in ("dpo", "target_rpo", "symmetric"):
        tree = lay_out([WITH_FOCUS], [0], rows, models.weighting(objective_settings(recipe)))
        columns = (tree.tokens[None], tree.depth[None], tree.visible_until[None])
        hidden[recipe] = np.asarray(decoder.hidden(params, *columns))
    np.testing.assert_array_equal(hidden["dpo"], hidden["target_rpo"])
    np.testing.assert_array_equal(hidden["dpo"], hidden["symmetric"])


def test_unweighted_targets_get_no_gradient():
    decoder, params = models.tiny()
    objective = objective_settings("target_dpo")
    batch, _ = make_batch([WITH_FOCUS], row_settings(truncate=False), objective)
    cut = batch._replace(weight_RE=batch.weight_RE * (batch.slot_RE == 0))
    micro = jax.tree.map(lambda x: x[0], cut)
    norms = {"pairs": jnp.ones(()), "nll": jnp.ones(())}

    def loss(logp):
        return loss_and_metrics(objective, logp, micro, 2 * micro.pair_weight_RP.shape[-1], norms)[0]

    gradient = jax.grad(loss)(jnp.full(micro.target_RG.shape, -1.0))
    weighted = np.zeros(gradient.shape, bool)
    weighted[0, micro.term_RE[micro.weight_RE != 0]] = True
    np.testing.assert_array_equal(np.asarray(gradient) != 0, weighted)


@pytest.mark.parametrize("recipe", ["dpo", "target_dpo", "target_rpo", "symmetric_rpo"])
def test_at_step_0_with_the_policy_as_reference_the_preference_loss_is_ln_2(recipe):
    decoder, params = models.tiny()
    objective = objective_settings(recipe)
    # The reference comes from another layout: rounding differs, as between a cache and the training rows.
    reference = per_pair_logps(decoder, params, EXAMPLES, row_settings("separate"), objective)
    batch, _ = make_batch(EXAMPLES, row_settings(), objective, reference=reference)
    _, metrics, _ = loss_and_grads(decoder, params, batch, objective)
    assert abs(float(metrics["preference_loss"]) - np.log(2)) < 1e-4
    assert abs(float(metrics["rewards/margins"])) < 1e-4


@pytest.mark.slow
def test_order_row_size_and_accumulation_change_no_log_prob_and_no_gradient():
    decoder, params = models.tiny()
    objective = objective_settings()
    base = row_settings(tokens=300, rows_per_microbatch=2)
    batch, _ = make_batch(EXAMPLES, base, objective)
    loss, _, grads = loss_and_grads(decoder, params, batch, objective)
    logps = per_pair_logps(decoder, params, EXAMPLES, base, objective)
    for rows, order in (
        (row_settings(tokens=100), None),
        (row_settings(tokens=130, rows_per_microbatch=3), [3, 1, 8, 0, 2, 7, 5, 4, 6]),
    ):
        batch, _ = make_batch(EXAMPLES, rows, objective, order)
        other, _, other_grads = loss_and_grads(decoder, params, batch, objective)
        np.testing.assert_allclose(other, loss, rtol=1e-5)
        assert_trees_close(other_grads, grads, rtol=1e-4, atol=2e-6)
        for got, expected in zip(per_pair_logps(decoder, params, EXAMPLES, rows, objective, order), logps, strict=True):
            np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("nll_norm", ["example", "token", "sum"])
def test_the_nll_normaliser_is_what_it_says(nll_norm):
    decoder, params = models.tiny()
    objective = objective_settings("sft", nll_norm=nll_norm, alpha=1.0)
    batch, _ = make_batch(EXAMPLES, row_settings(rows_per_microbatch=2, tokens=60), objective)
    loss, _, _ = loss_and_grads(decoder, params, batch, objective)
    nlls = [-direct_logps(record)[0] for record in range(len(EXAMPLES))]
    expected = {
        "example": np.mean([nll.mean() for nll in nlls]),
        "token": np.concatenate(nlls).mean(),
        "sum": np.mean([nll.sum() for nll in nlls]),
    }
    np.testing.assert_allclose(loss, expected[nll_norm], rtol=1e-5)


def test_parameters_are_initialised_equally_on_every_mesh():
    config = models.model_config()
    placement = placed(fsdp=4, tensor=2)
    assert_trees_close(init_params(config, 0, "float32", placement), init_params(config, 0, "float32"), rtol=0, atol=0)
