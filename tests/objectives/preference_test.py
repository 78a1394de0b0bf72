"""What is derived from a row's targets and terms, by hand."""

import jax.numpy as jnp
import numpy as np

from iterpref_jax.data.batch import empty_batch
from iterpref_jax.objectives.preference import mean_entropy


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
