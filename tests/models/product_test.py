"""The product of a linear layer: its values and gradients are those of JAX's own rules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iterpref_jax.models.layers import product


@pytest.mark.parametrize(
    ("x", "kernel", "ins"),
    [
        ((2, 5, 3), (3, 7), 1),
        ((2, 5, 7), (7, 3), 1),
        ((2, 5, 6), (6, 4, 3), 1),
        ((2, 5, 4, 3), (4, 3, 6), 2),
        ((5, 3), (3, 3), 1),
        ((3,), (3, 4), 1),
    ],
    ids=str,
)
def test_values_and_gradients_are_those_of_tensordot(x, kernel, ins):
    rng = np.random.default_rng(0)
    arrays = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in (x, kernel)]
    expected, pull = jax.vjp(lambda x, kernel: jnp.tensordot(x, kernel, ins), *arrays)
    found, own_pull = jax.vjp(lambda x, kernel: product(x, kernel, ins), *arrays)
    np.testing.assert_array_equal(found, expected)
    grad = jnp.asarray(rng.normal(size=found.shape), jnp.float32)
    for own, theirs in zip(own_pull(grad), pull(grad), strict=True):
        np.testing.assert_allclose(own, theirs, rtol=1e-5, atol=1e-5)
