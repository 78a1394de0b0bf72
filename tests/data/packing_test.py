"""The plan is a pure function: exact batches, caps kept, every pair once an epoch."""

import dataclasses
import itertools

import numpy as np
import pytest

from iterpref_jax.data import packing
from iterpref_jax.data.layout import Costs, RowSettings
from iterpref_jax.errors import UserError

ROWS = RowSettings(layout="shared", truncate=True, tokens=100, lengths=0, targets=60, pairs=4, rows_per_microbatch=2)


def costs_of(tokens, targets, group=None):
    """Costs of records whose joined costs are a half."""
    tokens, targets = np.array(tokens), np.array(targets)
    group = np.arange(len(tokens)) if group is None else group
    return Costs(tokens, targets, tokens // 2, targets // 2, targets, targets // 2, group)


def random_costs(n, seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 100, n)
    return costs_of(tokens, np.minimum(60, rng.integers(1, 60, n)))


def grouped_costs(n, seed=0):
    """Records in groups of 1 to 5."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(n), rng.integers(1, 6, n))[:n]
    return random_costs(n, seed)._replace(group=group)


def train(n=37, costs=random_costs, **changes):
    return packing.training_plan(
        costs(n), ROWS, **(dict(global_batch=8, epochs=3, steps=0, seed=5, multiple=1) | changes)
    )


def records_of(rows):
    return [record for row in rows for tree in row for record in tree]


@pytest.mark.parametrize("costs", [random_costs, grouped_costs])
def test_every_step_has_exactly_the_global_batch_and_every_pair_comes_once_an_epoch(costs):
    plan = train(n=40, costs=costs, epochs=2)
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


@pytest.mark.parametrize("costs", [random_costs, grouped_costs])
def test_rows_keep_every_cap_and_hold_the_records_of_the_step(costs):
    plan = train(costs=costs)
    for step in range(plan.steps):
        rows = plan.rows(step)
        assert sorted(records_of(rows)) == sorted(plan.records(step))
        assert len(rows) <= plan.microbatches * plan.rows_per_microbatch
        for row in rows:
            first, further = [tree[0] for tree in row], [record for tree in row for record in tree[1:]]
            records = first + further
            assert plan.costs.tokens[first].sum() + plan.costs.joined_tokens[further].sum() <= 100
            assert plan.costs.targets[first].sum() + plan.costs.joined_targets[further].sum() <= 60
            assert plan.costs.terms[records].sum() <= plan.caps.terms
            assert len(records) <= 4


def test_a_tree_holds_neighbours_of_one_group_in_their_order():
    plan = train(n=60, costs=grouped_costs)
    trees = [tree for step in range(plan.steps) for row in plan.rows(step) for tree in row]
    for tree in trees:
        assert tree == tuple(range(tree[0], tree[-1] + 1))
        assert len(set(plan.costs.group[list(tree)])) == 1
    assert any(len(tree) > 2 for tree in trees)


def test_the_records_of_a_group_follow_each_other_in_an_epoch_and_groups_are_shuffled():
    plan = train(n=40, costs=grouped_costs, global_batch=40, epochs=2)
    for step in (0, 1):
        stream = plan.records(step)
        groups = [list(records) for _, records in itertools.groupby(stream, key=lambda i: plan.costs.group[i])]
        assert sorted(records[0] for records in groups) == [
            np.flatnonzero(plan.costs.group == group)[0] for group in np.unique(plan.costs.group)
        ]
        assert all(records == list(range(records[0], records[-1] + 1)) for records in groups)
        assert stream.tolist() != sorted(stream)


def test_a_step_keeps_a_group_together_up_to_its_edge_and_within_the_caps():
    costs = costs_of([40, 40, 40, 40, 40, 10], [8] * 6, group=np.array([0, 0, 0, 0, 0, 1]))
    # Three of them fill 40 + 20 + 20; a fourth would still fit, a fifth (120 columns) would not.
    plan = packing.pass_plan(costs, ROWS, pairs_per_step=3)
    assert [plan.rows(step) for step in (0, 1)] == [[[(0, 1, 2)]], [[(3, 4), (5,)]]]
    plan = packing.pass_plan(costs, dataclasses.replace(ROWS, pairs=9, tokens=90), pairs_per_step=6)
    assert plan.rows(0) == [[(0, 1, 2), (5,)], [(3, 4)]]


EXPECTED_ROWS = [[(0,), (32,)], [(22,), (4,)], [(10,)], [(13,)], [(24,)], [(3,)]]


def test_rows_of_single_records_are_those_of_a_plain_best_fit():
    plan = train()
    assert plan.rows(0) == EXPECTED_ROWS


def test_the_plan_depends_on_seed_and_step_only():
    again = train()
    assert [train().rows(step) for step in (5, 0)] == [again.rows(5), again.rows(0)]
    assert train(seed=6).rows(0) != again.rows(0)


def test_the_shuffle_is_fixed_forever():
    # A resumed run must see the same batches under any later NumPy: these numbers may never change.
    assert packing._order(1, 0, 8).tolist() == EXPECTED_ORDER
    costs = costs_of([1] * 8, [1] * 8)
    plan = packing.training_plan(costs, ROWS, global_batch=8, epochs=1, steps=0, seed=1, multiple=1)
    assert plan.records(0).tolist() == EXPECTED_ORDER


EXPECTED_ORDER = [7, 0, 1, 6, 3, 4, 5, 2]


def test_a_pass_visits_every_pair_once_in_order():
    plan = packing.pass_plan(random_costs(21), ROWS, pairs_per_step=8)
    assert np.concatenate([plan.records(step) for step in range(plan.steps)]).tolist() == list(range(21))


def test_automatic_caps_hold_every_pair():
    automatic = RowSettings(
        layout="shared", truncate=True, tokens=100, lengths=0, targets=0, pairs=0, rows_per_microbatch=1
    )
    costs = random_costs(50)
    caps = packing.resolve_caps(costs, automatic)
    assert caps.targets >= costs.targets.max()
    assert caps.pairs >= 1


def test_pairs_that_fit_no_row_are_refused_with_the_size_that_holds_them():
    costs = costs_of([50, 300], [5, 5])
    with pytest.raises(UserError, match=r"1 of 2 pairs need more than rows.tokens = 100 .*raise rows.tokens to 300"):
        packing.resolve_caps(costs, ROWS)


def test_a_batch_larger_than_the_dataset_is_refused():
    with pytest.raises(UserError, match="holds only 37"):
        train(global_batch=38)


WIDE = RowSettings(layout="shared", truncate=True, tokens=4096, lengths=1, targets=0, pairs=0, rows_per_microbatch=8)


def wide_costs(n, seed=0, most=1500):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(50, most, n)
    return costs_of(tokens, rng.integers(1, tokens // 2))


def columns(plan, steps=16):
    """How many columns the microbatches of the first steps have, and how many microbatches there are."""
    packed = [plan.packed(step) for step in range(steps)]
    microbatches = [-(-len(rows) // plan.rows_per_microbatch) for rows, _ in packed]
    lengths = [caps.tokens for _, caps in packed]
    return plan.rows_per_microbatch * int(np.dot(microbatches, lengths)), sum(microbatches)


# Steps of a run that is worth compiling for.
LONG = 10_000


def wide_plan(costs, multiple=1, steps=40, global_batch=64, **changes):
    length = dict(global_batch=global_batch, epochs=0, steps=steps)
    return packing.training_plan(costs, dataclasses.replace(WIDE, **changes), seed=3, multiple=multiple, **length)


@pytest.mark.parametrize("seed", range(3))
def test_shortened_rows_make_steps_of_fewer_columns_in_as_many_microbatches(seed):
    costs = wide_costs(300, seed)
    whole, short = wide_plan(costs, lengths=0), wide_plan(costs)
    assert whole.caps.tokens == 4096
    assert short.caps.tokens % 128 == 0
    assert costs.tokens.max() <= short.caps.tokens < 4096
    assert columns(short)[0] < 0.9 * columns(whole)[0]
    assert columns(short)[1] == columns(whole)[1]
    for step in range(3):
        assert sorted(records_of(short.rows(step))) == sorted(whole.records(step))
        assert all(costs.tokens[records_of([row])].sum() <= short.caps.tokens for row in short.rows(step))


@pytest.mark.parametrize("seed", range(3))
def test_steps_that_choose_among_lengths_have_fewer_columns_in_no_more_microbatches(seed):
    costs = wide_costs(300, seed)
    one, three = wide_plan(costs), wide_plan(costs, lengths=3, steps=LONG)
    assert len(one.shapes) == 1
    assert 1 < len(three.shapes) <= 3
    assert columns(three)[0] < 0.97 * columns(one)[0]
    assert len({three.packed(step).caps for step in range(16)}) > 1
    for step in range(16):
        rows, caps = three.packed(step)
        assert sorted(records_of(rows)) == sorted(one.records(step))
        assert all(costs.tokens[records_of([row])].sum() <= caps.tokens for row in rows)
        # No other shape would have cost less.
        records = three.records(step)
        costs_of_all = [three.cost(each.tokens, len(packing.best_fit(records, costs, each))) for each in three.shapes]
        assert three.cost(caps.tokens, len(rows)) == min(costs_of_all)


def test_steps_that_are_all_alike_have_one_length_however_many_they_may_have():
    costs = costs_of([700] * 300, [200] * 300)
    assert wide_plan(costs, lengths=3, steps=LONG).shapes == wide_plan(costs).shapes


def test_small_steps_without_the_longest_pairs_have_rows_that_would_not_hold_those():
    tokens = np.where(np.arange(300) % 30, 200, 1800)
    costs = costs_of(tokens, tokens // 4)
    plan = wide_plan(costs, lengths=2, rows_per_microbatch=1, global_batch=4, steps=LONG)
    assert plan.shapes[0].tokens < 1800 <= plan.caps.tokens
    for step in range(40):
        rows, caps = plan.packed(step)
        assert (caps.tokens >= 1800) == (tokens[plan.records(step)].max() == 1800)
        assert all(costs.tokens[records_of([row])].sum() <= caps.tokens for row in rows)


def test_a_longer_run_keeps_the_length_of_its_rows_until_further_ones_pay():
    costs = wide_costs(300)
    shapes = {steps: wide_plan(costs, lengths=3, steps=steps).shapes for steps in (2, 200, LONG)}
    assert shapes[2] == wide_plan(costs, steps=LONG).shapes
    assert len(shapes[2]) == 1 <= len(shapes[200]) < len(shapes[LONG])
    assert set(shapes[2]) <= set(shapes[LONG])


@pytest.mark.parametrize(("multiple", "tokens"), [(3, 4608), (256, 4096), (1, 20000)])
def test_shortened_rows_can_be_split_evenly(multiple, tokens):
    short = wide_plan(wide_costs(300), multiple=multiple, tokens=tokens).caps.tokens
    assert short < tokens
    assert short % multiple == 0


def test_rows_that_hold_one_pair_only_are_not_shortened():
    costs = wide_costs(300, most=4097)
    assert costs.tokens.max() > 3968
    assert wide_plan(costs).caps == wide_plan(costs, lengths=0).caps


def test_groups_share_a_tree_in_shortened_rows_too():
    costs = wide_costs(300)._replace(group=np.arange(300) // 3)
    short = wide_plan(costs, layout="tree")
    assert short.caps.tokens < 4096
    assert max(len(tree) for row in short.rows(0) for tree in row) == 3


def test_a_pass_in_order_is_shortened_by_steps_of_all_of_it():
    """The first pairs are short ones: they alone would be served best by the shortest rows."""
    tokens = np.concatenate([np.full(1000, 100), np.full(7000, 1800)])
    plan = packing.pass_plan(costs_of(tokens, tokens // 4), WIDE, pairs_per_step=16)
    assert packing.with_lengths(plan, WIDE, 1, 1).caps.tokens == 3712
