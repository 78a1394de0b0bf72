"""Bootstrap intervals over tasks."""

import numpy as np
import pytest

from iterpref_jax.evaluate.bootstrap import TaskBootstrap


def test_a_value_is_the_ratio_of_sums_and_lies_in_its_interval():
    rng = np.random.default_rng(0)
    values, ones = rng.normal(1, 1, (60, 1)), np.ones((60, 1))
    found = TaskBootstrap([f"t{i % 20}" for i in range(60)], samples=500, seed=0).ratios(values, ones)[0]
    assert found.value == pytest.approx(values.mean())
    assert found.low < found.value < found.high


def test_copies_of_a_task_s_pairs_do_not_narrow_the_interval():
    values = np.random.default_rng(1).normal(0, 1, (30, 1))
    once = TaskBootstrap(range(30), samples=800, seed=0).ratios(values, np.ones((30, 1)))[0]
    many = TaskBootstrap(list(range(30)) * 10, samples=800, seed=0).ratios(np.tile(values, (10, 1)), np.ones((300, 1)))[
        0
    ]
    assert many.high - many.low == pytest.approx(once.high - once.low)


def test_the_interval_of_a_mean_over_independent_tasks_is_that_of_the_normal_approximation():
    values = np.random.default_rng(2).normal(0, 1, (400, 1))
    found = TaskBootstrap(range(400), samples=4000, seed=0).ratios(values, np.ones((400, 1)))[0]
    error = values.std() / 20
    assert (found.low, found.high) == pytest.approx(
        (values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.1 * error
    )


def test_a_column_without_pairs_has_no_estimate():
    zero = np.zeros((3, 1))
    assert TaskBootstrap(list("abc"), samples=10, seed=0).ratios(zero, zero) == [None]
