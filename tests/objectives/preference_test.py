"""What is derived from a row's targets and terms, by hand."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from iterpref_jax.data.batch import empty_batch
from iterpref_jax.objectives.preference import loss_and_metrics, mean_entropy, normalisers
from iterpref_jax.objectives.weights import PARTS
from tests.support.models import objective_settings


def test_the_entropy_is_the_mean_over_each_pairs_weighted_tokens_then_over_pairs():
    batch = empty_batch((1,), tokens=4, targets=5, terms=7, pairs=3)
    # Pair 0 scores targets 0, 1 (chosen) and 2 (rejected); pair 1 scores target 3 by NLL alone; term 4 has no weight.
    batch.term_RE[0, :5] = [0, 1, 2, 3, 4]
    batch.slot_RE[0, :5] = [0, 0, 1, 2, 2]
    batch.weight_RE[0, :3] = [1, 1, 0.5]
    batch.nll_weight_RE[0, 3] = 0.25
    batch.pair_chosen_RP[0, :2], batch.pair_rejected_RP[0, :2] = [0, 2], [1, 3]
    batch.pair_weight_RP[0, :2] = 1
    entropy_RG = jnp.array([[1.0, 2.0, 6.0, 5.0, 100.0]])
    got = mean_entropy(entropy_RG, batch, 6, jnp.float32(2))
    np.testing.assert_allclose(got, ((1 + 2 + 6) / 3 + 5) / 2, rtol=1e-6)


# Log-probs of the targets and the reference's; the last target is padding.
LOGP = [-1.0, -2.0, -0.5, -4.0, -1.0, -3.0, -100.0]
REF = [-1.5, -3.0, -0.25, -2.0, -0.5, -4.0, 0.0]
# target, slot, weight, nll weight, part. Both sides of the first pair use target 0.
TERMS = [
    (0, 0, 1.0, 0.5, "shared"),
    (1, 0, 1.0, 0.25, "focus"),
    (2, 0, 1.0, 0.25, "rest"),
    (0, 1, 1.0, 0.0, "shared"),
    (3, 1, 0.25, 0.0, "focus"),
    (4, 2, 1.0, 1.0, "focus"),
    (5, 3, 1.0, 0.0, "focus"),
]


def two_pairs():
    """Two pairs in a row with room for a third; the chosen sides are slots 0 and 2."""
    batch = empty_batch((1,), tokens=9, targets=7, terms=9, pairs=3)
    for number, (target, slot, weight, nll, part) in enumerate(TERMS):
        batch.term_RE[0, number], batch.slot_RE[0, number] = target, slot
        batch.weight_RE[0, number], batch.nll_weight_RE[0, number] = weight, nll
        batch.part_RE[0, number] = PARTS.index(part)
    batch.ref_logp_RG[0] = REF
    batch.pair_chosen_RP[0, :2], batch.pair_rejected_RP[0, :2] = [0, 2], [1, 3]
    batch.pair_weight_RP[0, :2] = 1
    return batch


def metrics(objective):
    batch = two_pairs()
    norms = normalisers(objective, jnp.asarray(batch.pair_weight_RP), jnp.asarray(batch.nll_weight_RE))
    return loss_and_metrics(objective, jnp.array([LOGP]), batch, 6, norms)[1]


def softplus(x):
    return math.log1p(math.exp(x))


def test_every_metric_is_the_number_computed_by_hand():
    # Log-ratios of the first pair: 0.5 + 1 - 0.25 = 1.25 and 0.5 - 0.25 * 2 = 0; of the second -0.5 and 1.
    preference = (softplus(-0.1 * 1.25) + softplus(-0.1 * (-0.5 - 1))) / 2
    nll = (0.5 * 1 + 0.25 * 2 + 0.25 * 0.5 + 1) / 2
    assert metrics(objective_settings("rpo", alpha=0.7)) == pytest.approx(
        {
            "loss": preference + 0.7 * nll,
            "preference_loss": preference,
            "nll_loss": nll,
            "rewards/chosen": 0.1 * (1.25 - 0.5) / 2,
            "rewards/rejected": 0.1 * (0 + 1) / 2,
            "rewards/margins": 0.1 * (1.25 - 0.5 - 0 - 1) / 2,
            "rewards/accuracies": 0.5,
            "logps/chosen": (-3.5 - 1) / 2,
            "logps/rejected": (-1 - 0.25 * 4 - 3) / 2,
            # Unweighted: 1 against -2, and -0.5 against 1.
            "focus/margins": (3 - 1.5) / 2,
            "focus/accuracies": 0.5,
            "logratios/chosen_shared": 0.5 / 2,
            "logratios/chosen_focus": (1 - 0.5) / 2,
            "logratios/chosen_rest": -0.25 / 2,
            "logratios/rejected_shared": 0.5 / 2,
            "logratios/rejected_focus": (-0.25 * 2 + 1) / 2,
            "logratios/rejected_rest": 0.0,
        },
        abs=1e-6,
    )


def test_rewards_of_means_without_a_reference_are_means_a_token():
    found = metrics(objective_settings("dpo", name="simpo"))
    chosen, rejected = 0.1 * (-3.5 / 3 - 1) / 2, 0.1 * (-2 / 1.25 - 3) / 2
    assert found["rewards/chosen"] == pytest.approx(chosen)
    assert found["rewards/rejected"] == pytest.approx(rejected)
    assert found["rewards/margins"] == pytest.approx(chosen - rejected)
    assert not [name for name in found if name.startswith(("focus/", "logratios/"))]
