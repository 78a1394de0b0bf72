"""Groups of pairs, by hand."""

import numpy as np

from iterpref_jax.data.groups import groupings
from tests.support.examples import index_of, random_examples


def test_every_pair_has_one_group_of_each_grouping():
    examples = random_examples(40, seed=1)
    found = groupings(index_of(examples), ["KeyError"] * 40, most=0)
    for grouping in found.values():
        assert np.bincount(grouping.number, minlength=len(grouping.names)).min() > 0
        assert len(grouping.number) == 40


def test_buckets_hold_their_upper_ends():
    example = random_examples(1)[0]
    focuses = [np.r_[np.ones(n, np.uint8), np.zeros(200 - n, np.uint8)] for n in (8, 9, 128, 129)]
    long = np.arange(200, dtype=np.int32)
    nothing = np.zeros(200, np.uint8)
    examples = [
        example._replace(chosen_ids=long, rejected_ids=long + 1, chosen_focus=nothing, rejected_focus=f)
        for f in focuses
    ]
    found = groupings(index_of(examples), [""] * 4, most=0)["focus_tokens"]
    assert [found.names[number] for number in found.number] == ["0-8", "9-32", "33-128", "129+"]


def test_rare_error_types_share_a_group_and_missing_ones_are_unknown():
    types = ["B", "A", "A", "", "", "", "C", "D"]
    found = groupings(index_of(random_examples(8)), types, most=2)["error_type"]
    assert found.names == ("unknown", "A", "other")
    assert [found.names[number] for number in found.number] == ["other", "A", "A", *["unknown"] * 3, "other", "other"]
