"""Tree attention by tiles in a CPU's cache against the dense XLA form: outputs and all gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iterpref_jax.ops.tree_attention import tree_attention
from tests.support.forests import random_forest


def rows_of(tokens, seed):
    """Two random forests and an empty row: (visible_until, depth)."""
    rng = np.random.default_rng(seed)
    forests = [random_forest(rng, tokens)[:2] for _ in range(2)] + [(np.zeros(tokens, int), np.zeros(tokens, int))]
    return tuple(jnp.asarray(np.stack(part), jnp.int32) for part in zip(*forests, strict=True))


def inputs(tokens, heads, kv_heads, head_dim, dtype=jnp.float32):
    rng = np.random.default_rng(tokens + heads)
    sizes = (heads, kv_heads, kv_heads, heads)
    return [jnp.asarray(rng.normal(size=(3, tokens, size, head_dim)), dtype) for size in sizes]


def outputs_and_gradients(implementation, arrays, until, depth, window):
    *qkv, cotangent = arrays
    is_token = (until > 0)[..., None, None]

    def attended(*qkv):
        options = dict(scale=0.3, window=window, implementation=implementation)
        # What padding gives is nobody's business.
        return jnp.where(is_token, tree_attention(*qkv, until, depth, **options), 0)

    out, pull = jax.vjp(jax.jit(attended), *qkv)
    return out, *pull(cotangent)


@pytest.mark.parametrize(
    ("tokens", "heads", "kv_heads", "head_dim"), [(128, 2, 2, 8), (390, 8, 1, 16), (517, 6, 2, 64)]
)
@pytest.mark.parametrize("window", [None, 40])
def test_outputs_and_gradients_equal_the_xla_form(tokens, heads, kv_heads, head_dim, window):
    arrays, trees = inputs(tokens, heads, kv_heads, head_dim), rows_of(tokens, seed=tokens)
    ours, theirs = (outputs_and_gradients(name, arrays, *trees, window) for name in ("cpu", "xla"))
    for got, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5, rtol=1e-5)


def test_bfloat16_stays_within_two_roundings_of_float32():
    arrays, trees = inputs(300, 4, 2, 64, jnp.bfloat16), rows_of(300, seed=1)
    exact = outputs_and_gradients("xla", [x.astype(jnp.float32) for x in arrays], *trees, None)
    for got, expected in zip(outputs_and_gradients("cpu", arrays, *trees, None), exact, strict=True):
        assert got.dtype == jnp.bfloat16
        assert jnp.linalg.norm(got.astype(jnp.float32) - expected) < 2**-7 * jnp.linalg.norm(expected)


def test_an_empty_row_and_padding_give_zeros():
    arrays = inputs(200, 2, 1, 8)
    until, depth = rows_of(200, seed=3)
    out = tree_attention(*arrays[:3], until, depth, scale=1.0, implementation="cpu")
    assert (np.asarray(out)[np.asarray(until) == 0] == 0).all()


def test_tiles_that_no_query_sees_are_not_read():
    arrays = inputs(512, 2, 1, 8)
    # Two trees of 256 columns: the second never meets the first, whose values may be anything.
    until = jnp.repeat(jnp.array([[256, 512]], jnp.int32), 256, axis=1).repeat(3, axis=0)
    depth = jnp.tile(jnp.arange(256), 2)[None].repeat(3, axis=0)
    value = arrays[2].at[:, :256].set(jnp.nan)
    out = tree_attention(arrays[0], arrays[1], value, until, depth, scale=1.0, implementation="cpu")
    assert np.isfinite(out[:, 256:]).all()
