"""pass@k, its intervals, and the tests between two runs, against definitions and known numbers."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from iterpref_jax.evaluate import scores


@pytest.mark.parametrize(("n", "c", "k"), [(5, 2, 1), (5, 2, 3), (6, 0, 2), (6, 6, 4), (4, 3, 2)])
def test_pass_at_k_is_the_share_of_all_choices_of_k_samples_with_a_passing_one(n, c, k):
    choices = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert scores.pass_at_k(n, c, k) == pytest.approx(sum(map(any, choices)) / len(choices))


def test_pass_at_k_of_fewer_samples_than_k_is_refused():
    with pytest.raises(ValueError, match="at least 10"):
        scores.pass_at_k(5, 2, 10)


def test_the_interval_of_a_score_is_that_of_the_binomial_for_single_samples():
    values = [1.0] * 60 + [0.0] * 40
    found = scores.score(values, draws=4000, seed=0)
    assert found.value == pytest.approx(0.6)
    half = 1.96 * math.sqrt(0.6 * 0.4 / 100)
    assert (found.low, found.high) == pytest.approx((0.6 - half, 0.6 + half), abs=0.015)


def test_an_interval_depends_on_the_seed_alone():
    values = list(np.random.default_rng(0).random(30))
    assert scores.score(values, draws=100, seed=3) == scores.score(values, draws=100, seed=3)
    assert scores.score(values, draws=100, seed=3) != scores.score(values, draws=100, seed=4)


@pytest.mark.parametrize(("gained", "lost"), [(8, 1), (1, 8), (3, 3), (0, 0), (0, 5), (30, 12)])
def test_mcnemar_is_the_exact_binomial_test_of_the_flips(gained, lost):
    flips = gained + lost
    expected = scipy.stats.binomtest(gained, flips, 0.5).pvalue if flips else 1.0
    assert scores.mcnemar(gained, lost) == pytest.approx(expected)


def test_a_paired_difference_is_narrower_than_two_separate_intervals():
    random = np.random.default_rng(1)
    first = {str(i): float(random.random() < 0.5) for i in range(200)}
    second = {**first, "0": 1.0 - first["0"]}
    found = scores.difference(first, second, draws=1000, seed=0)
    assert found.interval.high - found.interval.low < 0.03
    assert len(found.gained) + len(found.lost) == 1


def test_flips_are_named_in_the_direction_of_the_second_run():
    found = scores.difference({"a": 0.0, "b": 1.0, "c": 1.0}, {"a": 1.0, "b": 0.0, "c": 1.0}, draws=50, seed=0)
    assert (found.gained, found.lost) == (("a",), ("b",))
