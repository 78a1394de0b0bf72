"""What a layer is made of has the values and gradients of JAX's own rules, sums over tokens in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iterpref_jax.models.layers import lookup, product, spread


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


@pytest.mark.parametrize("vector", [(6,), (2, 3)], ids=str)
def test_a_spread_vector_has_the_gradient_of_a_broadcast_one(vector):
    rng = np.random.default_rng(0)
    own, grad = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in (vector, (4, 5, *vector)))
    expected, pull = jax.vjp(lambda v: jnp.broadcast_to(v, grad.shape), own)
    found, own_pull = jax.vjp(lambda v: spread(v, grad.shape, jnp.dtype(jnp.float32)), own)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(own_pull(grad)[0], pull(grad)[0], rtol=1e-6, atol=1e-6)


def test_a_lookup_has_the_gradient_of_indexing():
    rng = np.random.default_rng(0)
    table_VD, grad = (
        jnp.asarray(rng.normal(size=(9, 4)), jnp.float32),
        jnp.asarray(rng.normal(size=(3, 7, 4)), jnp.float32),
    )
    tokens = jnp.asarray(rng.integers(0, 9, (3, 7)))
    expected, pull = jax.vjp(lambda table: table[tokens], table_VD)
    found, own_pull = jax.vjp(lambda table: lookup(table, tokens), table_VD)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(own_pull(grad)[0], pull(grad)[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("function", ["spread", "lookup"])
def test_gradients_of_many_tokens_in_bfloat16_do_not_stand_still(function):
    dtype, tokens = jnp.dtype(jnp.bfloat16), 1600
    if function == "spread":
        one, make = jnp.ones(4, dtype), lambda v: spread(v, (1, tokens, 4), dtype)
    else:
        one, make = jnp.ones((3, 4), dtype), lambda table: lookup(table, jnp.zeros((1, tokens), jnp.int32))
    _, pull = jax.vjp(make, one)
    grad = jnp.ones((1, tokens, 4), dtype)
    np.testing.assert_array_equal(np.asarray(pull(grad)[0], np.float32).max(), tokens)
    # Not by the grace of this platform: a GPU adds in the dtype that the program says.
    reduced = [eqn for eqn in jax.make_jaxpr(pull)(grad).eqns if eqn.primitive.name in ("reduce_sum", "scatter-add")]
    assert [eqn.invars[0].aval.dtype for eqn in reduced] == [jnp.float32]
