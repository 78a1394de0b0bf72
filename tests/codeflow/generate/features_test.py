"""Trees of features: drawn by frequency and temperature, extended without loss."""

import collections
import json
import random

import pytest

from iterpref_jax.codeflow.generate import features
from iterpref_jax.errors import UserError

TREE = {"text": {"parsing": {"csv": 8, "json": 1}, "case": 1}, "maths": {"primes": 2}}


def first(temperature, draws=4000):
    rng = random.Random(0)
    return collections.Counter(features.sample(TREE, 1, temperature, rng)[0] for _ in range(draws))


def test_the_tree_of_the_package_is_one_and_large():
    tree = features.load("")
    assert features.leaves(tree) > 150
    assert features.check(tree, "it") is tree


def test_at_temperature_one_features_come_as_often_as_the_tree_says():
    drawn = first(1.0)
    for path, count in ((("text", "parsing", "csv"), 8), (("text", "case"), 1), (("maths", "primes"), 2)):
        assert drawn[path] / 4000 == pytest.approx(count / 12, abs=0.03)


def test_a_higher_temperature_brings_rare_features_and_a_lower_one_frequent_ones():
    rare, usual, sharp = (first(t)[("text", "parsing", "json")] for t in (5.0, 1.0, 0.3))
    assert rare > 1.5 * usual > 3 * sharp


def test_a_sample_holds_no_feature_twice_and_all_of_them_at_most():
    drawn = features.sample(TREE, 99, 1.0, random.Random(1))
    assert len(drawn) == len(set(drawn)) == 4
    assert TREE == {"text": {"parsing": {"csv": 8, "json": 1}, "case": 1}, "maths": {"primes": 2}}


def test_extending_a_tree_keeps_all_and_a_leaf_that_grows_shares_its_frequency():
    grown = features.merge(
        TREE, {"text": {"case": {"snake": 3, "camel": 1}, "parsing": {"csv": 100, "xml": 2}}, "new": {"x": 1}}
    )
    assert grown["text"]["parsing"] == {"csv": 8, "json": 1, "xml": 2}
    assert grown["text"]["case"] == {"snake": 0.75, "camel": 0.25}
    assert features.frequency(grown) == features.frequency(TREE) + 3


def test_the_part_that_is_shown_is_a_part_of_the_tree():
    tree = features.load("")
    for seed in range(20):
        part = features.part(tree, random.Random(seed))
        assert features.merge(tree, part) == tree
        assert 2 <= features.leaves(part) <= 30


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": {}}, "tree.json: a: wanted an object with features"),
        ({"a": {"b": 0}}, "tree.json: a: b: a frequency must be a number above 0"),
        ({"a": {"b": True}}, "tree.json: a: b: wanted an object"),
        ({"a": {" ": 1}}, "a name is one line"),
        ([], "wanted an object with features"),
    ],
)
def test_a_file_that_is_no_tree_is_refused_with_the_place(tmp_path, content, message):
    path = tmp_path / "tree.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        features.load(str(path))


def test_a_tree_of_any_depth_is_taken_or_refused_and_never_a_crash():
    def nested(depth):
        return {"a": nested(depth - 1)} if depth else 1

    assert features.check(nested(features.MAX_DEPTH), "tree")
    for depth in (features.MAX_DEPTH + 1, 900):
        with pytest.raises(ValueError, match="at most 16 levels"):
            features.check(nested(depth), "tree")
