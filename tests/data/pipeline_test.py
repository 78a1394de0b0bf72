"""A step as the trainer reads it: the plan's rows, laid out, whatever the number of hosts."""

import numpy as np
import pytest

from iterpref_jax.data.layout import LAYOUTS, RowSettings, Weighting, costs
from iterpref_jax.data.packing import training_plan
from iterpref_jax.data.pipeline import StepSource
from iterpref_jax.objectives.weights import find_recipe
from tests.support.examples import index_of, random_groups

EXAMPLES = random_groups(12, seed=8)
WEIGHTING = Weighting(recipe=find_recipe("target_rpo"), seed=0, nll_norm="example")


def sources(layout, hosts):
    rows = RowSettings(layout=layout, truncate=True, tokens=150, targets=0, pairs=0, rows_per_microbatch=4)
    cost = costs(index_of(EXAMPLES), rows, WEIGHTING)
    plan = training_plan(cost, rows, global_batch=9, epochs=2, steps=0, seed=1)
    reference = [np.arange(size, dtype=np.float32) + 1000 * record for record, size in enumerate(cost.terms)]
    return [
        StepSource(
            split=EXAMPLES, plan=plan, rows=rows, weighting=WEIGHTING, reference=reference, host=host, hosts=hosts
        )
        for host in range(hosts)
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_rows_of_all_hosts_are_those_of_one(layout):
    [alone] = sources(layout, 1)
    parts = sources(layout, 2)
    for step in range(len(alone)):
        for whole, *halves in zip(alone[step], *(part[step] for part in parts), strict=True):
            np.testing.assert_array_equal(np.concatenate(halves, axis=1), whole)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_step_holds_its_pairs_and_all_their_terms(layout):
    [source] = sources(layout, 1)
    for step in range(len(source)):
        batch, records = source[step], source.plan.records(step)
        assert batch.pair_weight_RP.sum() == len(records) == 9
        used = (batch.weight_RE != 0) | (batch.nll_weight_RE != 0)
        assert used.sum() == source.plan.costs.terms[records].sum()
        by_pair = [slots.max() for slots in (batch.pair_chosen_RP, batch.pair_rejected_RP)]
        assert batch.slot_RE[used].max() <= max(by_pair)


def test_the_reference_of_a_target_is_that_of_its_first_term():
    [source] = sources("tree", 1)
    batch = source[0]
    for number, trees in enumerate(source.plan.rows(0)):
        place = divmod(number, 4)
        values = np.concatenate([source.reference[record] for tree in trees for record in tree])
        first = dict(zip(batch.term_RE[place][: len(values)][::-1], values[::-1], strict=True))
        assert len(first) < len(values) or len(trees) == 1
        np.testing.assert_array_equal(batch.ref_logp_RG[place][sorted(first)], [first[term] for term in sorted(first)])
