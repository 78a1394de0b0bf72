"""Stochastic rounding: neighbours, means, and noise that depends on seed and place alone."""

import jax.numpy as jnp
import numpy as np
import pytest

from iterpref_jax.train.rounding import rounded


def test_a_number_becomes_one_of_its_neighbours_and_the_mean_stays():
    x = jnp.full((200, 500), 1 + 2**-7 * 0.3)
    found, next_seed = (np.float32(rounded(x, jnp.uint32(seed))) for seed in (7, 8))
    assert set(np.unique(found)) == {1.0, 1 + 2**-7}
    up = found > 1
    assert np.mean(up) == pytest.approx(0.3, abs=0.01)
    # Neighbours, and the next seed, know nothing of each other.
    for equal in (up[:, 1:] == up[:, :-1], up[1:] == up[:-1], up == (next_seed > 1)):
        assert np.mean(equal) == pytest.approx(0.3**2 + 0.7**2, abs=0.01)


def test_a_part_gets_the_noise_of_the_whole():
    x = jnp.linspace(-3, 5, 60, dtype=jnp.float32).reshape(5, 4, 3)
    whole = rounded(x, jnp.uint32(3))
    np.testing.assert_array_equal(rounded(x[2], jnp.uint32(3), 2 * 12), whole[2])
    assert not np.array_equal(rounded(x, jnp.uint32(4)), whole)


def test_exact_numbers_infinities_and_nan_stay():
    # The last one's bits are all in the half that rounding drops.
    hidden_nan = np.array(0x7F800001, np.uint32).view(np.float32)
    x = np.array([0.0, -0.0, 1.5, -2.0, np.inf, -np.inf, np.nan, hidden_nan], np.float32)
    for seed in range(20):
        np.testing.assert_array_equal(np.float32(rounded(jnp.asarray(x), jnp.uint32(seed))), x)
