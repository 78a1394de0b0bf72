"""Trees: visibility, sources, costs from the index, on random pairs and by hand."""

import numpy as np
import pytest

from iterpref_jax.data.layout import LAYOUTS, RowSettings, Weighting, costs, lay_out
from iterpref_jax.data.schema import Example
from iterpref_jax.objectives.weights import RECIPES
from tests.support.examples import index_of, random_examples

EXAMPLE = Example(
    pair_id="p",
    task="t",
    prompt_ids=np.array([10, 11]),
    chosen_ids=np.array([1, 2, 3, 4]),
    rejected_ids=np.array([1, 2, 7, 8, 9]),
    chosen_focus=np.array([0, 0, 1, 0]),
    rejected_focus=np.array([0, 1, 1, 0, 0]),
)


def rows(layout="shared", truncate=True):
    return RowSettings(layout=layout, truncate=truncate, tokens=64, targets=0, pairs=0, rows_per_microbatch=1)


def weighting(recipe="target_rpo", nll_norm="example"):
    return Weighting(recipe=RECIPES[recipe], seed=3, nll_norm=nll_norm)


def paths(tree):
    """The tokens that every column sees, in order: its branch up to itself."""
    columns = np.arange(len(tree.tokens))
    return [list(tree.tokens[(columns <= i) & (i < tree.visible_until)]) for i in columns]


def test_the_shared_tree_is_what_one_draws_by_hand():
    tree = lay_out(EXAMPLE, 0, rows(truncate=False), weighting())
    assert tree.tokens.tolist() == [10, 11, 1, 2, 3, 4, 7, 8, 9]
    assert tree.depth.tolist() == [0, 1, 2, 3, 4, 5, 4, 5, 6]
    assert tree.visible_until.tolist() == [9, 9, 9, 9, 6, 6, 9, 9, 9]
    assert tree.source.tolist() == [1, 2, 3, 4, 2, 3]
    assert tree.target.tolist() == [1, 2, 3, 4, 2, 7]
    assert tree.side.tolist() == [0, 0, 0, 0, 1, 1]
    assert tree.part.tolist() == [0, 0, 1, 2, 0, 1]
    np.testing.assert_allclose(tree.nll_weight, [0.25] * 4 + [0] * 2)


def test_truncation_leaves_out_what_carries_no_loss():
    tree = lay_out(EXAMPLE, 0, rows(), weighting())
    # The last targets (4 and 7) are predicted, never attended to; 7 is predicted from the shared trunk.
    assert tree.tokens.tolist() == [10, 11, 1, 2, 3]
    assert tree.source.tolist() == [1, 2, 3, 4, 2, 3]


def test_separate_repeats_the_prompt():
    tree = lay_out(EXAMPLE, 0, rows("separate", truncate=False), weighting())
    assert tree.tokens.tolist() == [10, 11, 1, 2, 3, 4, 10, 11, 1, 2, 7, 8, 9]
    assert tree.visible_until.tolist() == [6] * 6 + [13] * 7
    assert tree.source.tolist() == [1, 2, 3, 4, 8, 9]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("truncate", [True, False])
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_target_sees_exactly_its_own_branch(layout, truncate, recipe):
    for record, example in enumerate(random_examples(30, seed=1)):
        tree = lay_out(example, record, rows(layout, truncate), weighting(recipe))
        seen = paths(tree)
        position = {0: -1, 1: -1}
        for source, target, side in zip(tree.source, tree.target, tree.side, strict=True):
            ids = (example.chosen_ids, example.rejected_ids)[side]
            branch = seen[source][len(example.prompt_ids) :]
            assert seen[source][: len(example.prompt_ids)] == list(example.prompt_ids)
            assert branch == list(ids[: len(branch)])
            assert target == ids[len(branch)]
            assert tree.depth[source] == len(example.prompt_ids) + len(branch) - 1
            assert len(branch) > position[side], "targets of a side come in order, once each"
            position[side] = len(branch)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("truncate", [True, False])
@pytest.mark.parametrize("recipe", RECIPES)
def test_costs_from_the_index_equal_the_trees(layout, truncate, recipe):
    examples = random_examples(60, seed=2)
    cost = costs(index_of(examples), rows(layout, truncate), weighting(recipe))
    for record, example in enumerate(examples):
        tree = lay_out(example, record, rows(layout, truncate), weighting(recipe))
        assert cost.tokens[record] == len(tree.tokens)
        assert cost.targets[record] == len(tree.target)
        assert cost.chosen_targets[record] == (tree.side == 0).sum()


def test_hybrid_weighs_about_half_of_the_pairs_in_full():
    examples = random_examples(200, seed=3)
    full = [
        len(example.rejected_ids) == (lay_out(example, i, rows(), weighting("hybrid")).side == 1).sum()
        for i, example in enumerate(examples)
    ]
    assert 70 < sum(full) < 130


def test_sft_lays_out_no_rejected_token():
    tree = lay_out(EXAMPLE, 0, rows(), weighting("sft"))
    assert tree.tokens.tolist() == [10, 11, 1, 2, 3]
    assert not tree.weight.any()
