"""The TPU kernels, interpreted: equal to the XLA form, gradients included; and compiled for TPUs that are not there."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iterpref_jax.ops import tree_attention_tpu as kernels
from iterpref_jax.ops.tree_attention import tree_attention
from iterpref_jax.parallel.topology import open_topology
from tests.support.forests import random_forest
from tests.support.meshes import placed

INTERPRETED = dict(implementation="tpu", interpret=True)


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 128 tokens, so that short rows have many."""
    monkeypatch.setattr(kernels, "MAX_BLOCK", 128)


def inputs(tokens, heads, kv_heads, head_dim, dtype=jnp.float32):
    """Random query, key and value, and three rows: branching, nearly one chain, empty."""
    rng = np.random.default_rng(tokens)
    forests = [random_forest(rng, tokens, **kind) for kind in (dict(padding=40), dict(branching=0.01, trees=0.003))]
    until, depth = (np.stack([*(forest[i] for forest in forests), forests[0][i] * 0]) for i in (0, 1))
    states = [rng.normal(size=(3, tokens, n, head_dim)) for n in (heads, kv_heads, kv_heads)]
    return [jnp.asarray(x, dtype) for x in states], jnp.asarray(until), jnp.asarray(depth)


def outputs_and_gradients(states, until, depth, **options):
    """Outputs where there is a token, zero elsewhere, and gradients of a function in which padding has no part."""

    def total(*states):
        out = tree_attention(*states, until, depth, scale=0.3, **options) * (until > 0)[..., None, None]
        return jnp.sin(out.astype(jnp.float32)).sum(), out

    (_, out), grads = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))(*states)
    return out, *grads


CASES = [(300, 8, 1, 16, None), (260, 6, 2, 64, 40), (200, 3, 3, 80, None), (384, 2, 1, 256, 40)]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(("tokens", "heads", "kv_heads", "head_dim", "window"), CASES)
def test_outputs_and_gradients_equal_the_xla_form(tokens, heads, kv_heads, head_dim, window):
    given = inputs(tokens, heads, kv_heads, head_dim)
    expected = outputs_and_gradients(given[0], *given[1:], window=window, implementation="xla")
    found = outputs_and_gradients(given[0], *given[1:], window=window, **INTERPRETED)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, float(jnp.abs(b).max())))


def test_padding_queries_give_zeros_and_get_and_give_no_gradient():
    states, until, depth = inputs(140, 2, 1, 8)
    padding = np.asarray(until == 0)
    assert padding.any()

    @jax.jit
    def pulled(*states):
        """Outputs, the gradients that all outputs give, and those that padding alone gives."""
        out, pull = jax.vjp(lambda *x: tree_attention(*x, until, depth, scale=0.3, **INTERPRETED), *states)
        ones = jnp.ones_like(out)
        return out, *pull(ones), *pull(ones * padding[..., None, None])

    out, *found = map(np.asarray, pulled(*states))
    for array in (out, *found):
        assert (array[padding] == 0).all()
    assert all((grad == 0).all() for grad in found[3:])


def test_bfloat16_is_accumulated_in_float32():
    states, until, depth = inputs(256, 4, 2, 64, jnp.bfloat16)
    found = outputs_and_gradients(states, until, depth, **INTERPRETED)
    exact = outputs_and_gradients([x.astype(jnp.float32) for x in states], until, depth, implementation="xla")
    for a, b in zip(found, exact, strict=True):
        assert a.dtype == jnp.bfloat16
        error = jnp.linalg.norm(a.astype(jnp.float32) - b) / jnp.linalg.norm(b)
        assert error < 2**-7, "about one rounding to bfloat16"


@pytest.mark.parametrize(
    ("tokens", "block"),
    [(1, 128), (128, 128), (200, 256), (512, 512), (640, 384), (1536, 512), (1600, 512), (4096, 512)],
)
def test_blocks_are_as_even_as_multiples_of_the_lanes_can_be(tokens, block):
    assert kernels.block_size(tokens) == block


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler")
@pytest.mark.parametrize(("head_dim", "window"), [(64, None), (128, 300), (256, None)])
@pytest.mark.parametrize("chips", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_forward_and_backward_compile_for_tpus(chips, head_dim, window):
    placement = placed(open_topology(chips).devices, data=2, tensor=2)
    attend = functools.partial(tree_attention, scale=0.1, window=window, platform=placement.platform)
    heads = ("row", "token", "heads", "head_dim"), ("row", "token", "kv_heads", "head_dim")
    dims = [heads[0], heads[1], heads[1], ("row", "token"), ("row", "token")]

    def total(query, key, value, until, depth):
        out = placement.map_shards(attend, (query, key, value, until, depth), dims)
        return out.astype(jnp.float32).sum()

    shapes = [(2, 1000, n, head_dim) for n in (8, 2, 2)] + [(2, 1000)] * 2
    dtypes = [jnp.bfloat16] * 3 + [jnp.int32] * 2
    arrays = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=placement.sharding(names, shape))
        for shape, dtype, names in zip(shapes, dtypes, dims, strict=True)
    ]
    compiled = jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(*arrays).compile().as_text()
    calls = [line for line in compiled.splitlines() if 'custom_call_target="tpu_custom_call"' in line]
    for kernel in ("forward", "dq", "dkv"):
        assert any(f"{kernel}_kernel" in call for call in calls), kernel
