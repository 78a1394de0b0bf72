"""Log-probs by blocks of the vocabulary against a full log-softmax: values, gradients, entropy, precision, memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iterpref_jax.ops.linear_logp import (
    HeadShards,
    Projection,
    block_size,
    gather_sources,
    linear_logp,
    listed_targets,
    softcapped,
    walked_targets,
)
from tests.support.meshes import placed

ROWS, TARGETS = 2, 11


def projection(vocab=128, targets=4, kept=0, **fields):
    return Projection(vocab=vocab, targets=targets, kept_bytes=kept, **fields)


def inputs(rows=ROWS, targets=TARGETS, embed=16, vocab=300, scale=1.0, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(rows, targets, embed)) * scale, dtype)
    table = jnp.asarray(rng.normal(size=(vocab, embed)), dtype)
    return hidden, table, jnp.asarray(rng.integers(0, vocab, (rows, targets)))


def dense(hidden, table, target, softcap=None):
    logps = jax.nn.log_softmax(softcapped(hidden.astype(jnp.float32) @ table.astype(jnp.float32).T, softcap))
    return jnp.take_along_axis(logps, target[..., None], -1)[..., 0], -(jnp.exp(logps) * logps).sum(-1)


def some_used(target):
    """Rows with few, all and no used targets."""
    counts = np.resize([3, target.shape[1], 0], len(target))
    return jnp.asarray(np.arange(target.shape[1]) < counts[:, None])


def logps(hidden, table, target, how):
    return linear_logp(hidden, table, target, jnp.ones(target.shape, bool), how)


def assert_equal_values_and_gradients(how, hidden, table, target, softcap=None, used=None):
    used = jnp.ones(target.shape, bool) if used is None else used
    weight = jnp.asarray(np.random.default_rng(1).normal(size=target.shape), jnp.float32)

    def loss(form, hidden, table):
        logp, entropy = form(hidden, table, target)
        # What an unused target gives must be 0, and its cotangent must not matter.
        return (weight * logp).sum(), (logp, entropy)

    def plain(*arrays):
        return tuple(jnp.where(used, x, 0) for x in dense(*arrays, softcap))

    ours = functools.partial(loss, lambda *arrays: linear_logp(*arrays, used, how))
    theirs = functools.partial(loss, plain)
    got, expected = (
        jax.jit(jax.value_and_grad(form, argnums=(0, 1), has_aux=True))(hidden, table) for form in (ours, theirs)
    )
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("vocab", [53, 128, 300, 512])
@pytest.mark.parametrize("kept", [0, 1 << 20])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_values_entropies_and_gradients_equal_the_dense_form(vocab, kept, softcap):
    how = projection(kept=kept, softcap=softcap)
    assert_equal_values_and_gradients(how, *inputs(vocab=vocab), softcap)


@pytest.mark.parametrize(("tile", "fit"), [(1, 0), (4, 0), (7, 0), (64, 0), (7, 3), (8, 4), (64, 5)])
@pytest.mark.parametrize("kept", [0, 1 << 20])
def test_targets_that_are_not_used_change_nothing(tile, fit, kept):
    hidden, table, target = inputs(rows=5)
    used = some_used(target)
    # Logits that overflow where nobody looks must not reach anything.
    loud = jnp.where(used[..., None], hidden, 1e4)
    how = projection(targets=tile, fit=fit, kept=kept)

    def loss(hidden, table):
        return linear_logp(hidden, table, target, used, how)[0].sum()

    quiet_grads, loud_grads = (jax.grad(loss, argnums=(0, 1))(x, table) for x in (hidden, loud))
    np.testing.assert_array_equal(loud_grads[1], quiet_grads[1])
    assert (np.asarray(loud_grads[0])[~np.asarray(used)] == 0).all()
    assert_equal_values_and_gradients(how, hidden, table, target, used=used)


@pytest.mark.parametrize(("kept", "fit"), [(0, 0), (1 << 20, 3)])
@pytest.mark.parametrize(
    "sizes",
    [
        dict(data=2, fsdp=2, tensor=2),
        dict(fsdp=4, tensor=2),
        dict(fsdp=2, tensor=4),
        dict(data=8),
        dict(fsdp=2, sequence=4),
        dict(data=2, sequence=2, tensor=2),
        dict(fsdp=2, expert=2, sequence=2),
    ],
    ids=str,
)
@pytest.mark.parametrize("embed", [16, pytest.param(18, marks=pytest.mark.slow)])
def test_every_mesh_equals_the_dense_form(sizes, kept, fit, embed):
    placement = placed(**sizes)
    hidden, table, target = inputs(rows=8, targets=12, embed=embed, vocab=600)
    dims = dict(row=8, target_share=12, vocab=600, embed=embed)
    shards = HeadShards(placement.mesh, *(placement.axes(dim, size) for dim, size in dims.items()))
    hidden = jax.device_put(hidden, placement.sharding(("row", "target_share", "activation_embed"), hidden.shape))
    table = jax.device_put(table, placement.sharding(("vocab", "embed"), table.shape))
    how = projection(kept=kept, fit=fit, shards=shards)
    assert_equal_values_and_gradients(how, hidden, table, target, used=some_used(target))


def test_a_sharded_table_is_never_gathered_whole():
    placement = placed(fsdp=4, tensor=2)
    hidden, table, target = inputs(rows=8, targets=4, embed=64, vocab=8192)
    shards = HeadShards(placement.mesh, ("fsdp",), (), ("tensor",), ("fsdp",))
    dims = ("row", "target", "activation_embed"), ("vocab", "embed")
    put = [jax.device_put(x, placement.sharding(d, x.shape)) for x, d in zip((hidden, table), dims, strict=True)]
    how = projection(shards=shards)
    grad = jax.jit(jax.grad(lambda h, w: logps(h, w, target, how)[0].sum(), argnums=(0, 1)))
    memory = grad.lower(*put).compile().memory_analysis()
    # A device holds its eighth of the gradient twice over, and blocks; its half of the vocabulary would be 1 MiB more.
    assert memory.temp_size_in_bytes < 8192 * 64 * 4 / 2


def test_huge_logits_stay_finite():
    hidden, table, target = inputs(scale=1e4)
    assert np.isfinite(jnp.stack(logps(hidden, table, target, projection()))).all()


def test_a_table_that_is_not_trained_costs_no_gradient():
    hidden, table, target = inputs(vocab=100_000)
    how = projection()
    grad = jax.jit(jax.grad(lambda h: logps(h, table, target, how)[0].sum()))
    assert grad.lower(hidden).compile().memory_analysis().temp_size_in_bytes < table.nbytes / 4


def test_bfloat16_inputs_give_float32_sums():
    hidden, table, target = inputs(embed=256, dtype=jnp.bfloat16)
    got, _ = logps(hidden, table, target, projection())
    assert got.dtype == jnp.float32
    # Only the inputs are rounded: against float64 on the same bf16 numbers the error is float32's.
    exact = np.asarray(hidden, np.float64) @ np.asarray(table, np.float64).T
    exact -= np.log(np.exp(exact - exact.max(-1, keepdims=True)).sum(-1, keepdims=True)) + exact.max(-1, keepdims=True)
    np.testing.assert_allclose(got, np.take_along_axis(exact, np.asarray(target)[..., None], -1)[..., 0], atol=2e-4)


def test_no_array_of_all_logits_exists():
    hidden, table, target = inputs(rows=1, targets=4096, vocab=8192)
    how = projection(vocab=512, targets=1024)
    grad = jax.jit(jax.grad(lambda h, w: logps(h, w, target, how)[0].sum(), argnums=(0, 1)))
    memory = grad.lower(hidden, table).compile().memory_analysis()
    all_logits = 4096 * 8192 * 4
    assert memory.temp_size_in_bytes < all_logits / 4


@pytest.mark.parametrize("vocab", [1000, 49_152, 151_936, 152_064])
@pytest.mark.parametrize("most", [128, 2048, 32_768])
def test_blocks_are_even_and_waste_less_than_a_lane_each(vocab, most):
    size = block_size(most, vocab)
    blocks = -(-vocab // size)
    assert size == vocab or size % 128 == 0
    assert size <= most
    assert blocks * size - vocab < 128 * blocks


@pytest.mark.parametrize(("most", "fit"), [(512, 64), (512, 0), (7, 3), (100, 64)])
@pytest.mark.parametrize("targets", [1, 6, 100, 768, 1500])
def test_tiles_hold_the_used_targets_within_the_list(most, fit, targets):
    how = projection(targets=most, fit=fit)
    walked = [walked_targets(how, used, targets) for used in range(targets + 1)]
    assert walked[0] == 0
    assert max(walked) == listed_targets(how, targets)
    for used, all_tiles in enumerate(walked):
        # No more tiles than of the largest size, and less than a step of each is too much.
        tiles = -(-used // min(most, targets))
        assert used <= all_tiles < used + tiles * (fit or most) + 1


def test_targets_of_one_row_cost_less_in_tiles_that_fit():
    hidden, table, target = inputs(rows=4, targets=100, vocab=1000)
    used = jnp.asarray(np.arange(400).reshape(4, 100) < 130)
    assert walked_targets(projection(targets=256), 130, 400) == 256
    assert walked_targets(projection(targets=256, fit=64), 130, 400) == 192
    assert_equal_values_and_gradients(projection(targets=256, fit=64, kept=1 << 20), hidden, table, target, used=used)


def test_gather_takes_the_source_columns():
    hidden = jnp.arange(24.0).reshape(2, 4, 3)
    got = gather_sources(hidden, jnp.array([[3, 0], [1, 1]]))
    np.testing.assert_array_equal(got, [[hidden[0, 3], hidden[0, 0]], [hidden[1, 1], hidden[1, 1]]])
