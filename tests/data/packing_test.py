"""The plan is a pure function: exact batches, caps kept, every pair once an epoch."""

import itertools

import numpy as np
import pytest

from iterpref_jax.data import packing
from iterpref_jax.data.layout import Costs, RowSettings
from iterpref_jax.errors import UserError

ROWS = RowSettings(layout="shared", truncate=True, tokens=100, targets=60, pairs=4, rows_per_microbatch=2)


def random_costs(n, seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 100, n)
    targets = np.minimum(60, rng.integers(1, 60, n))
    return Costs(tokens, targets, targets // 2)


def train(n=37, **changes):
    return packing.training_plan(random_costs(n), ROWS, **(dict(global_batch=8, epochs=3, steps=0, seed=5) | changes))


def test_every_step_has_exactly_the_global_batch_and_every_pair_comes_once_an_epoch():
    plan = train(n=40, epochs=2)
    stream = [plan.records(step) for step in range(plan.steps)]
    assert plan.steps == 10
    assert all(len(batch) == 8 for batch in stream)
    epochs = np.concatenate(stream).reshape(2, 40)
    assert all(sorted(epoch) == list(range(40)) for epoch in epochs)
    assert list(epochs[0]) != list(epochs[1])


def test_a_step_may_hold_the_end_of_one_epoch_and_the_start_of_the_next():
    stream = np.concatenate([train(n=37).records(step) for step in range(13)])
    assert sorted(stream[:37]) == list(range(37))
    assert sorted(stream[37:74]) == list(range(37))


def test_rows_keep_every_cap_and_hold_the_records_of_the_step():
    plan = train()
    for step in range(plan.steps):
        rows = plan.rows(step)
        assert sorted(itertools.chain.from_iterable(rows)) == sorted(plan.records(step))
        assert len(rows) <= plan.microbatches * plan.rows_per_microbatch
        for row in rows:
            assert plan.costs.tokens[row].sum() <= 100
            assert plan.costs.targets[row].sum() <= 60
            assert len(row) <= 4


def test_the_plan_depends_on_seed_and_step_only():
    again = train()
    assert [train().rows(step) for step in (5, 0)] == [again.rows(5), again.rows(0)]
    assert train(seed=6).rows(0) != again.rows(0)


def test_the_shuffle_is_fixed_forever():
    # A resumed run must see the same batches under any later NumPy: these numbers may never change.
    assert packing._order(1, 0, 8).tolist() == EXPECTED_ORDER


EXPECTED_ORDER = [7, 0, 1, 6, 3, 4, 5, 2]


def test_a_pass_visits_every_pair_once_in_order():
    plan = packing.pass_plan(random_costs(21), ROWS, pairs_per_step=8)
    assert np.concatenate([plan.records(step) for step in range(plan.steps)]).tolist() == list(range(21))


def test_automatic_caps_hold_every_pair():
    automatic = RowSettings(layout="shared", truncate=True, tokens=100, targets=0, pairs=0, rows_per_microbatch=1)
    costs = random_costs(50)
    caps = packing.resolve_caps(costs, automatic)
    assert caps.targets >= costs.targets.max()
    assert caps.pairs >= 1


def test_pairs_that_fit_no_row_are_refused_with_the_size_that_holds_them():
    costs = Costs(np.array([50, 300]), np.array([5, 5]), np.array([1, 1]))
    with pytest.raises(UserError, match=r"1 of 2 pairs need more than rows.tokens = 100 .*raise rows.tokens to 300"):
        packing.resolve_caps(costs, ROWS)


def test_a_batch_larger_than_the_dataset_is_refused():
    with pytest.raises(UserError, match="holds only 37"):
        train(global_batch=38)
