"""Tree attention against plain softmax attention over each token's own branch, one query at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iterpref_jax.errors import UserError
from iterpref_jax.ops.tree_attention import IMPLEMENTATIONS, choose, tree_attention
from tests.support.forests import random_forest


def branch_attention(query, key, value, parent, depth, scale, window):
    out = np.zeros_like(query, np.float64)
    group = query.shape[1] // key.shape[1]
    for column in range(len(parent)):
        seen, node = [], column
        while node >= 0:
            if window is None or depth[column] - depth[node] < window:
                seen.append(node)
            node = parent[node]
        for head in range(query.shape[1]):
            scores = key[seen, head // group].astype(np.float64) @ query[column, head] * scale
            weights = np.exp(scores - scores.max())
            out[column, head] = (weights / weights.sum()) @ value[seen, head // group]
    return out


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("tokens", "heads", "kv_heads"), [(13, 4, 2), (150, 6, 1), (300, 2, 2)])
@pytest.mark.parametrize("window", [None, 7])
def test_every_query_attends_to_its_branch_alone(implementation, tokens, heads, kv_heads, window):
    rng = np.random.default_rng(tokens)
    forests = [random_forest(rng, tokens) for _ in range(2)]
    until, depth = (np.stack([forest[i] for forest in forests]) for i in (0, 1))
    query = rng.normal(size=(2, tokens, heads, 8)).astype(np.float32)
    key, value = (rng.normal(size=(2, tokens, kv_heads, 8)).astype(np.float32) for _ in range(2))
    options = dict(scale=0.3, window=window, implementation=implementation, interpret=True)
    got = np.asarray(jax.jit(lambda *a: tree_attention(*a, **options))(query, key, value, until, depth))
    for row, (_, _, parent) in enumerate(forests):
        expected = branch_attention(query[row], key[row], value[row], parent, depth[row], 0.3, window)
        np.testing.assert_allclose(got[row, : len(parent)], expected[: len(parent)], atol=2e-5)


def test_padding_gives_finite_outputs_and_gradients():
    rng = np.random.default_rng(0)
    query, key, value = (jnp.asarray(rng.normal(size=(1, 6, 2, 4)), jnp.float32) for _ in range(3))
    until, depth = jnp.array([[3, 3, 3, 0, 0, 0]]), jnp.array([[0, 1, 2, 0, 0, 0]])

    def used(query, key, value):
        return tree_attention(query, key, value, until, depth, scale=1.0)[:, :3].sum()

    grads = jax.grad(used, argnums=(0, 1, 2))(query, key, value)
    assert all(np.isfinite(grad).all() for grad in grads)
    assert all((np.asarray(grad)[:, 3:] == 0).all() for grad in grads), "padding gets no gradient"


def test_bfloat16_inputs_are_accumulated_in_float32():
    rng = np.random.default_rng(1)
    query, key, value = (jnp.asarray(rng.normal(size=(1, 64, 2, 16)), jnp.bfloat16) for _ in range(3))
    until, depth = jnp.full((1, 64), 64), jnp.arange(64)[None]
    got = tree_attention(query, key, value, until, depth, scale=0.25)
    exact = tree_attention(*(x.astype(jnp.float32) for x in (query, key, value)), until, depth, scale=0.25)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32), exact, atol=2e-2)


def test_an_unknown_implementation_is_refused():
    x = jnp.ones((1, 2, 2, 4))
    with pytest.raises(UserError, match="did you mean 'xla'"):
        tree_attention(x, x, x, jnp.full((1, 2), 2), jnp.zeros((1, 2), int), scale=1.0, implementation="xlaa")


@pytest.mark.parametrize(("platform", "best"), [("cpu", "cpu"), ("tpu", "tpu"), ("gpu", "gpu"), ("cuda", "gpu")])
def test_the_best_implementation_is_that_of_the_platform(platform, best):
    assert choose(None, platform) == choose(best, platform) == best
    assert choose("xla", platform) == "xla", "the plain form runs everywhere"


@pytest.mark.parametrize(
    ("implementation", "platform"), [("tpu", "cpu"), ("tpu", "gpu"), ("gpu", "tpu"), ("cpu", "tpu")]
)
def test_a_kernel_of_another_platform_is_refused_unless_it_is_interpreted(implementation, platform):
    with pytest.raises(UserError, match=f"'{implementation}' does not run on platform '{platform}'"):
        choose(implementation, platform)
    assert choose(implementation, platform, interpret=True) == implementation
