"""Groups of pairs in one tree: the same loss, scores, metrics and gradients as pair by pair."""

import jax
import numpy as np
import pytest

from iterpref_jax.objectives.preference import of_terms, pair_scores
from iterpref_jax.objectives.weights import RECIPES
from tests.support import models
from tests.support.examples import random_groups
from tests.support.models import loss_and_grads, make_batch, objective_settings, per_pair_logps, row_settings
from tests.train.acceptance_test import assert_trees_close

EXAMPLES = random_groups(5, seed=12, longest=16)
LAYOUTS = [("separate", True), ("separate", False), ("shared", True), ("tree", False), ("tree", True)]


def score_by_record(decoder, params, batch, packed, objective):
    """The scores of every pair [N, 6], through the rows."""
    logps, found = np.asarray(models._score(decoder)(params, batch)), {}
    for number, trees in enumerate(packed):
        micro = jax.tree.map(lambda x, at=number: x[at], batch)
        slots = 2 * micro.pair_weight_RP.shape[-1]
        logp_RE = of_terms(logps[number], micro)
        scores = np.asarray(pair_scores(logp_RE, micro, slots, uses_reference=objective.uses_reference))[:, 0]
        records = [record for tree in trees for record in tree]
        found |= {record: scores[:, pair] for pair, record in enumerate(records)}
    return np.stack([found[record] for record in range(len(EXAMPLES))])


# Recipes that differ in how the focus was found weigh the same tokens of these pairs.
DISTINCT = {(recipe.chosen, recipe.rejected, recipe.nll): name for name, recipe in RECIPES.items()}


@pytest.mark.parametrize("recipe", DISTINCT.values())
def test_loss_scores_metrics_and_every_gradient_of_trees_equal_those_of_single_pairs(recipe):
    decoder, params = models.tiny()
    objective = objective_settings(recipe)
    reference = per_pair_logps(decoder, models.tiny(seed=1)[1], EXAMPLES, row_settings("separate"), objective)
    results = []
    for layout, truncate in LAYOUTS:
        batch, packed = make_batch(EXAMPLES, row_settings(layout, truncate), objective, reference=reference)
        scores = score_by_record(decoder, params, batch, packed, objective)
        results.append((*loss_and_grads(decoder, params, batch, objective), scores))
    assert any(len(tree) > 1 for trees in packed for tree in trees)
    for loss, metrics, grads, scores in results[1:]:
        np.testing.assert_allclose(loss, results[0][0], rtol=1e-5)
        assert_trees_close(metrics, results[0][1], rtol=1e-4, atol=1e-5)
        assert_trees_close(grads, results[0][2], rtol=1e-4, atol=2e-6)
        np.testing.assert_allclose(scores, results[0][3], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("recipe", ["dpo", "target_rpo", "symmetric"])
def test_log_probs_scored_in_one_layout_are_those_of_another(recipe):
    decoder, params = models.tiny()
    objective = objective_settings(recipe)
    alone = per_pair_logps(decoder, params, EXAMPLES, row_settings("separate"), objective)
    together = per_pair_logps(decoder, params, EXAMPLES, row_settings("tree"), objective)
    for got, expected in zip(together, alone, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_trees_take_fewer_columns_and_targets_than_single_pairs():
    used = {}
    for layout in ("shared", "tree"):
        batch, _ = make_batch(EXAMPLES, row_settings(layout), objective_settings("dpo"))
        used[layout] = (batch.visible_until_RT > 0).sum(), (batch.term_RE.max(-1) + 1).sum()
        assert (batch.weight_RE != 0).sum() == sum(len(e.chosen_ids) + len(e.rejected_ids) for e in EXAMPLES)
    assert used["tree"][0] < used["shared"][0]
    assert used["tree"][1] < used["shared"][1]
