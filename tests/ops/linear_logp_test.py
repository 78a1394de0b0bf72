"""Chunked log-probs against a full log-softmax: values, gradients, precision, memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iterpref_jax.ops.linear_logp import gather_sources, linear_logp


def inputs(rows=2, targets=11, embed=16, vocab=53, scale=1.0, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(rows, targets, embed)) * scale, dtype)
    head = jnp.asarray(rng.normal(size=(vocab, embed)), dtype)
    return hidden, head, jnp.asarray(rng.integers(0, vocab, (rows, targets)))


def dense(hidden, head, target):
    logp = jax.nn.log_softmax(hidden.astype(jnp.float32) @ head.astype(jnp.float32).T)
    return jnp.take_along_axis(logp, target[..., None], -1)[..., 0]


@pytest.mark.parametrize("chunk", [1, 4, 11, 64])
def test_values_and_gradients_equal_the_dense_form_for_any_chunk(chunk):
    hidden, head, target = inputs()
    weight = jnp.asarray(np.random.default_rng(1).normal(size=target.shape), jnp.float32)

    def loss(log_probs, hidden, head):
        return (weight * log_probs(hidden, head, target)).sum()

    ours = jax.value_and_grad(lambda *a: loss(lambda *b: linear_logp(*b, chunk=chunk), *a), argnums=(0, 1))
    theirs = jax.value_and_grad(lambda *a: loss(dense, *a), argnums=(0, 1))
    for got, expected in zip(
        jax.tree.leaves(jax.jit(ours)(hidden, head)), jax.tree.leaves(theirs(hidden, head)), strict=True
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_huge_logits_stay_finite():
    hidden, head, target = inputs(scale=1e4)
    assert np.isfinite(linear_logp(hidden, head, target, chunk=4)).all()


def test_bfloat16_inputs_give_float32_sums():
    hidden, head, target = inputs(embed=256, dtype=jnp.bfloat16)
    got = linear_logp(hidden, head, target, chunk=4)
    assert got.dtype == jnp.float32
    # Only the inputs are rounded: against float64 on the same bf16 numbers the error is float32's.
    exact = np.asarray(hidden, np.float64) @ np.asarray(head, np.float64).T
    exact -= np.log(np.exp(exact - exact.max(-1, keepdims=True)).sum(-1, keepdims=True)) + exact.max(-1, keepdims=True)
    np.testing.assert_allclose(got, np.take_along_axis(exact, np.asarray(target)[..., None], -1)[..., 0], atol=2e-4)


def test_no_array_of_all_logits_exists():
    hidden, head, target = inputs(rows=1, targets=4096, vocab=8192)
    grad = jax.jit(jax.grad(lambda h, w: linear_logp(h, w, target, chunk=64).sum(), argnums=(0, 1)))
    memory = grad.lower(hidden, head).compile().memory_analysis()
    all_logits = 4096 * 8192 * 4
    assert memory.temp_size_in_bytes < all_logits / 8


def test_gather_takes_the_source_columns():
    hidden = jnp.arange(24.0).reshape(2, 4, 3)
    got = gather_sources(hidden, jnp.array([[3, 0], [1, 1]]))
    np.testing.assert_array_equal(got, [[hidden[0, 3], hidden[0, 0]], [hidden[1, 1], hidden[1, 1]]])
