"""Trees: visibility, sources, costs from the index, on random pairs and groups of pairs, and by hand."""

import numpy as np
import pytest

from iterpref_jax.data.layout import LAYOUTS, RowSettings, Weighting, costs, lay_out
from iterpref_jax.data.schema import Example
from iterpref_jax.objectives.weights import RECIPES
from tests.support.examples import index_of, random_examples, random_groups

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
    return RowSettings(
        layout=layout, truncate=truncate, tokens=64, lengths=0, targets=0, pairs=0, rows_per_microbatch=1
    )


def weighting(recipe="target_rpo", nll_norm="example"):
    return Weighting(recipe=RECIPES[recipe], seed=3, nll_norm=nll_norm)


def paths(tree):
    """The tokens that every column sees, in order: its branch up to itself."""
    columns = np.arange(len(tree.tokens))
    return [list(tree.tokens[(columns <= i) & (i < tree.visible_until)]) for i in columns]


def test_the_shared_tree_is_what_one_draws_by_hand():
    tree = lay_out([EXAMPLE], [0], rows(truncate=False), weighting())
    assert tree.tokens.tolist() == [10, 11, 1, 2, 3, 4, 7, 8, 9]
    assert tree.depth.tolist() == [0, 1, 2, 3, 4, 5, 4, 5, 6]
    assert tree.visible_until.tolist() == [9, 9, 9, 9, 6, 6, 9, 9, 9]
    # Token 2 in the common prefix has weight on both sides: one target, two terms.
    assert tree.source.tolist() == [1, 2, 3, 3, 4]
    assert tree.target.tolist() == [1, 2, 3, 7, 4]
    assert tree.term.tolist() == [0, 1, 2, 4, 1, 3]
    assert tree.slot.tolist() == [0, 0, 0, 0, 1, 1]
    assert tree.part.tolist() == [0, 0, 1, 2, 0, 1]
    np.testing.assert_allclose(tree.nll_weight, [0.25] * 4 + [0] * 2)


def test_truncation_leaves_out_what_carries_no_loss():
    tree = lay_out([EXAMPLE], [0], rows(), weighting())
    # The last targets (4 and 7) are predicted, never attended to; 7 is predicted from the shared trunk.
    assert tree.tokens.tolist() == [10, 11, 1, 2, 3]
    assert tree.source.tolist() == [1, 2, 3, 3, 4]


def test_separate_repeats_the_prompt():
    tree = lay_out([EXAMPLE], [0], rows("separate", truncate=False), weighting())
    assert tree.tokens.tolist() == [10, 11, 1, 2, 3, 4, 10, 11, 1, 2, 7, 8, 9]
    assert tree.visible_until.tolist() == [6] * 6 + [13] * 7
    assert tree.source.tolist() == [1, 2, 3, 4, 8, 9]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("truncate", [True, False])
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_target_sees_exactly_its_own_branch(layout, truncate, recipe):
    for record, example in enumerate(random_examples(30, seed=1)):
        tree = lay_out([example], [record], rows(layout, truncate), weighting(recipe))
        seen = paths(tree)
        position = {0: -1, 1: -1}
        for source, target, side in zip(tree.source[tree.term], tree.target[tree.term], tree.slot, strict=True):
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
        tree = lay_out([example], [record], rows(layout, truncate), weighting(recipe))
        assert cost.tokens[record] == len(tree.tokens)
        assert cost.targets[record] == len(tree.target)
        assert cost.terms[record] == len(tree.term)
        assert cost.chosen_terms[record] == (tree.slot == 0).sum()


def test_hybrid_weighs_about_half_of_the_pairs_in_full():
    examples = random_examples(200, seed=3)
    full = [
        len(example.rejected_ids) == (lay_out([example], [i], rows(), weighting("hybrid")).slot == 1).sum()
        for i, example in enumerate(examples)
    ]
    assert 70 < sum(full) < 130


def test_sft_lays_out_no_rejected_token():
    tree = lay_out([EXAMPLE], [0], rows(), weighting("sft"))
    assert tree.tokens.tolist() == [10, 11, 1, 2, 3]
    assert not tree.weight.any()


def groups_of(examples):
    """The record numbers of every group."""
    starts = np.flatnonzero(index_of(examples).previous_len < 0)
    return [range(start, stop) for start, stop in zip(starts, [*starts[1:], len(examples)], strict=True)]


@pytest.mark.parametrize("truncate", [True, False])
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_term_of_a_group_sees_exactly_its_own_branch(truncate, recipe):
    examples = random_groups(12, seed=4)
    for group in groups_of(examples):
        tree = lay_out([examples[record] for record in group], group, rows("tree", truncate), weighting(recipe))
        seen, terms = paths(tree), iter(zip(tree.term, tree.slot, tree.weight, tree.nll_weight, tree.part, strict=True))
        for number, record in enumerate(group):
            alone = lay_out([examples[record]], [record], rows("separate", truncate), weighting(recipe))
            views, own = paths(alone), (alone.term, alone.slot, alone.weight, alone.nll_weight, alone.part)
            for one, side, *rest in zip(*own, strict=True):
                term, slot, *found = next(terms)
                assert (slot, found) == (2 * number + side, rest)
                assert tree.target[term] == alone.target[one]
                assert seen[tree.source[term]] == views[alone.source[one]]
        assert next(terms, None) is None


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_tree_scores_no_target_twice_and_holds_no_prefix_twice(recipe):
    examples = random_groups(12, seed=5)
    for group in groups_of(examples):
        tree = lay_out([examples[record] for record in group], group, rows("tree"), weighting(recipe))
        prefixes = [tuple(branch) for branch in paths(tree)]
        assert len(set(prefixes)) == len(prefixes)
        scored = list(zip(tree.source, tree.target, strict=True))
        assert len(set(scored)) == len(scored)
        assert set(tree.term) == set(range(len(scored)))


def test_a_further_pair_adds_only_its_own_tail():
    more = EXAMPLE._replace(rejected_ids=np.array([1, 2, 7, 5, 6]), rejected_focus=np.array([0, 0, 1, 1, 1]))
    tree = lay_out([EXAMPLE, more], [0, 1], rows("tree"), weighting())
    # Behind y+ (its last token is predicted only): 7, where both rejected sides leave y+, and 5; 6 is predicted only.
    assert tree.tokens.tolist() == [10, 11, 1, 2, 3, 7, 5]
    assert tree.visible_until.tolist() == [7, 7, 7, 7, 5, 7, 7]
    assert [path.tolist() for path in tree.paths] == [
        [0, 1, 2, 3, 4],
        [0, 1, 2, 3],
        [0, 1, 2, 3, 4],
        [0, 1, 2, 3, 5, 6],
    ]
    assert tree.source.tolist() == [1, 2, 3, 3, 4, 5, 6]
    assert tree.target.tolist() == [1, 2, 3, 7, 4, 5, 6]
    assert tree.slot.tolist() == [0] * 4 + [1] * 2 + [2] * 4 + [3] * 3


@pytest.mark.parametrize("truncate", [True, False])
@pytest.mark.parametrize("recipe", RECIPES)
def test_joined_costs_hold_every_part_of_a_group(truncate, recipe):
    examples, shape = random_groups(40, seed=6), (rows("tree", truncate), weighting(recipe))
    cost = costs(index_of(examples), *shape)
    for group in groups_of(examples):
        assert len(set(cost.group[group])) == 1
        for first in group:
            for stop in range(first + 1, group.stop + 1):
                part = range(first, stop)
                tree = lay_out([examples[record] for record in part], part, *shape)
                assert len(tree.tokens) <= cost.tokens[first] + cost.joined_tokens[part[1:]].sum()
                assert len(tree.target) <= cost.targets[first] + cost.joined_targets[part[1:]].sum()
                assert len(tree.term) == cost.terms[part].sum()
    assert (np.diff(cost.group) >= 0).all()


def test_joined_costs_are_exact_where_every_version_continues_the_one_before_it():
    def version(ids):
        focus = np.zeros(len(ids), np.uint8)
        focus[-1] = 1
        return EXAMPLE._replace(rejected_ids=np.array(ids), rejected_focus=focus)

    examples = [version([1, 2, 7, 8]), version([1, 2, 7, 8, 9, 6]), version([1, 2, 7, 8, 9, 5, 4])]
    cost = costs(index_of(examples), rows("tree"), weighting())
    tree = lay_out(examples, range(3), rows("tree"), weighting())
    assert len(tree.tokens) == cost.tokens[0] + cost.joined_tokens[1:].sum()
    assert len(tree.target) == cost.targets[0] + cost.joined_targets[1:].sum()
