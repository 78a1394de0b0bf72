"""The GPU kernels: interpreted, against dense attention over the contract; compiled, for a GPU that is not there."""

import dataclasses
import functools
import importlib.util
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from iterpref_jax.ops import tree_attention_gpu as gpu
from iterpref_jax.ops.tree_attention import tree_attention
from iterpref_jax.ops.tree_attention_gpu import Tile, Tiles, tree_attention_gpu
from iterpref_jax.ops.tree_blocks import tree_blocks
from iterpref_jax.parallel.topology import CHIPS, GPU_PLUGINS, open_topology
from tests.support.forests import dense_mask, random_forest

# Many blocks of few tokens.
SMALL = Tiles(Tile(32, 16, 4, 2), Tile(16, 16, 4, 2), Tile(16, 32, 4, 2))

needs_gpu_compiler = pytest.mark.skipif(
    not any(importlib.util.find_spec(plugin) for plugin in GPU_PLUGINS),
    reason="needs the GPU compiler: pip install 'iterpref_jax[cuda]'",
)


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(gpu, "pick_tiles", lambda *_: SMALL)


def forests(tokens, seed=0):
    """Visible_until and depth of a row of small trees, one of long branches, and an empty one."""
    rng = np.random.default_rng(seed)
    rows = [random_forest(rng, tokens, padding=40), random_forest(rng, tokens, branching=0.02, trees=0.01)]
    return tuple(np.stack([*(row[i] for row in rows), np.zeros(tokens, np.int32)]) for i in (0, 1))


def random_heads(rows, tokens, heads, kv_heads, head_dim, seed=0):
    """Query, key, value and the gradient of the output."""
    rng = np.random.default_rng(seed)
    counts = heads, kv_heads, kv_heads, heads
    return [jnp.asarray(rng.normal(size=(rows, tokens, count, head_dim)), jnp.float32) for count in counts]


def scale_of(query):
    return query.shape[3] ** -0.5


def dense(query, key, value, until, depth, window):
    """Softmax over what the contract's mask shows; zeros where it shows nothing."""
    group = query.shape[2] // key.shape[2]
    key, value = (jnp.repeat(x, group, axis=2) for x in (key, value))
    mask = dense_mask(until, depth, window)[:, None]
    scores = jnp.where(mask, jnp.einsum("rtnh,rsnh->rnts", query, key) * scale_of(query), -1e30)
    return jnp.einsum("rnts,rsnh->rtnh", jnp.where(mask, jax.nn.softmax(scores, axis=-1), 0), value)


def interpreted(query, key, value, until, depth, window):
    columns = jnp.asarray(until), jnp.asarray(depth)
    return tree_attention_gpu(query, key, value, *columns, scale=scale_of(query), window=window, interpret=True)


@functools.partial(jax.jit, static_argnums=(0, 1))
def passes(attention, window, heads, until, depth):
    """The output, and the gradients of query, key and value."""
    *given, dout = heads
    out, pull_back = jax.vjp(lambda *given: attention(*given, until, depth, window), *given)
    return [out, *pull_back(dout)]


@pytest.mark.parametrize(
    ("tokens", "heads", "kv_heads", "head_dim", "window"),
    [(128, 6, 2, 16, None), (117, 6, 2, 16, 70), (117, 3, 1, 8, None), (90, 2, 2, 24, 7)],
)
@pytest.mark.usefixtures("small_tiles")
def test_outputs_and_gradients_are_those_of_dense_attention(tokens, heads, kv_heads, head_dim, window):
    for seed in range(4):
        columns, given = forests(tokens, seed), random_heads(3, tokens, heads, kv_heads, head_dim, seed)
        found, expected = (passes(attention, window, given, *columns) for attention in (interpreted, dense))
        for got, want in zip(found, expected, strict=True):
            np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("head_dim", [80, 256])
def test_the_tiles_of_a_run_give_what_the_xla_form_gives(head_dim):
    until, depth = forests(200)
    heads = random_heads(3, 200, 2, 1, head_dim)
    real = jnp.asarray(until > 0)[..., None, None]

    def xla(query, key, value, until, depth, window):
        return tree_attention(query, key, value, until, depth, scale=scale_of(query), window=window)

    # What padding gives is not the same in both, and nobody reads it.
    heads[-1] *= real
    found, expected = (passes(attention, 50, heads, until, depth) for attention in (interpreted, xla))
    for got, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(got * real, want * real, atol=1e-5)


@pytest.mark.usefixtures("small_tiles")
def test_bfloat16_is_rounded_only_where_it_enters_and_leaves_a_product():
    columns = forests(128)
    heads = [x.astype(jnp.bfloat16) for x in random_heads(3, 128, 4, 2, 16)]
    found = passes(interpreted, None, heads, *columns)
    exact = passes(dense, None, [x.astype(jnp.float32) for x in heads], *columns)
    assert all(x.dtype == jnp.bfloat16 for x in found)
    for got, want in zip(found, exact, strict=True):
        # A number of 8 bits is wrong by at most 2^-9 of itself; a few such roundings meet.
        assert jnp.abs(got - want).max() < 2**-7 * jnp.abs(want).max()


@pytest.mark.usefixtures("small_tiles")
def test_a_block_that_nobody_sees_is_not_read():
    # Two trees of two blocks each; what stands in the first one is poison for whoever reads it.
    until = jnp.repeat(jnp.array([[64, 128]]), 64, axis=1)
    depth = jnp.tile(jnp.arange(64), 2)[None]
    heads = [x.at[:, :64].set(jnp.nan) for x in random_heads(1, 128, 2, 1, 16)]
    assert all(jnp.isfinite(x[:, 64:]).all() for x in passes(interpreted, None, heads, until, depth))


@pytest.mark.parametrize("window", [None, 40])
def test_the_blocks_of_a_list_that_get_a_mask_come_first_and_are_those_seen_in_part(window):
    columns = forests(128, seed=3)
    seen = dense_mask(*columns, window).reshape(3, 8, 16, 8, 16)
    visits = tree_blocks(*map(jnp.asarray, columns), window, query_block=16, key_block=16).keys_RIJ
    lists = jax.tree.map(np.asarray, gpu._masked_first(visits))
    whole = np.zeros((3, 8, 8), bool)
    for row, block in np.ndindex(3, 8):
        others = lists.other_RBO[row, block, : lists.count_RB[row, block]]
        assert sorted(others) == sorted(visits.other[row, block, : len(others)]), "nothing is lost"
        whole[row, block, others[lists.masked_RB[row, block] :]] = True
    assert whole.any()
    np.testing.assert_array_equal(whole, seen.all((2, 4)))


@needs_gpu_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    ("head_dim", "dtype", "window"),
    [(64, jnp.bfloat16, None), (128, jnp.bfloat16, 512), (256, jnp.bfloat16, None), (128, jnp.float32, None)],
)
def test_the_kernels_compile_for_a_gpu_that_is_not_there_in_99_kb_of_shared_memory(
    head_dim, dtype, window, monkeypatch
):
    # The least that a GPU with bfloat16 gives to a block (compute capability 8.6, 8.9); an H100 gives 227.
    config = re.sub(r"(?<=shared_memory_per_block_optin: )\d+", str(99 * 1024), CHIPS["h100"].target_config)
    monkeypatch.setitem(CHIPS, "h100", dataclasses.replace(CHIPS["h100"], target_config=config))
    topology = open_topology("h100:1x1")
    mesh = Mesh(np.array(topology.devices), "x")

    def given(*shape, dtype=dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec()))

    heads = [given(2, 1000, count, head_dim) for count in (6, 2, 2)]
    columns = [given(2, 1000, dtype=jnp.int32)] * 2

    def total(*arrays):
        return tree_attention_gpu(*arrays, scale=1.0, window=window).astype(jnp.float32).sum()

    # Pallas asks the mesh for the kind of device.
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        lowered = jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(*heads, *columns)
    assert lowered.compile(topology.compiler_options).as_text().count('"__gpu$xla.gpu.triton"') == 3


needs_gpu = pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU, and JAX_PLATFORMS=cuda")


@needs_gpu
@pytest.mark.parametrize(
    ("tokens", "heads", "kv_heads", "head_dim", "window"),
    [
        (1000, 12, 2, 128, None),
        (777, 14, 2, 64, 200),
        (515, 4, 1, 256, None),
        (300, 8, 8, 80, 50),
    ],
)
def test_on_a_gpu_outputs_and_gradients_are_those_of_dense_attention(tokens, heads, kv_heads, head_dim, window):
    rng = np.random.default_rng(tokens)
    rows = [random_forest(rng, tokens, padding=tokens // 5), random_forest(rng, tokens, branching=0.02, trees=0.01)]
    until, depth = (jnp.asarray(np.stack([row[i] for row in rows])) for i in (0, 1))
    given = random_heads(2, tokens, heads, kv_heads, head_dim)
    given[-1] *= (until > 0)[..., None, None]

    def kernel(query, key, value, until, depth, window):
        return tree_attention_gpu(query, key, value, until, depth, scale=scale_of(query), window=window)

    rounded = [x.astype(jnp.bfloat16) for x in given]
    with jax.default_matmul_precision("highest"):
        expected = passes(dense, window, [x.astype(jnp.float32) for x in rounded], until, depth)
    for got, want in zip(passes(kernel, window, rounded, until, depth), expected, strict=True):
        assert got.dtype == jnp.bfloat16
        assert jnp.abs(got - want).max() < 2**-6 * jnp.abs(want).max()


@needs_gpu
def test_on_a_gpu_float32_is_exact_where_exact_products_are_asked_for():
    until, depth = (jnp.asarray(x) for x in forests(117))
    given = random_heads(3, 117, 4, 2, 64)

    def kernel(query, key, value, until, depth, window):
        return tree_attention_gpu(query, key, value, until, depth, scale=scale_of(query), window=window)

    with jax.default_matmul_precision("highest"):
        found, expected = (passes(attention, 50, given, until, depth) for attention in (kernel, dense))
    for got, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)
