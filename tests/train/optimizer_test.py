"""How AdamW's state is kept: each lever against what it must equal, over random gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from iterpref_jax.train.layerwise import to_host
from iterpref_jax.train.optimizer import Optimizer, OptimizerSettings, make_optimizer, make_schedule

SETTINGS = OptimizerSettings(
    learning_rate=1e-3, schedule="cosine", warmup=0.0, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.1, clip_norm=1.0,
    state_dtype="float32", master=False, offload=False,
)  # fmt: skip
UPDATES = 3


def params(dtype="float32", *, whole=True):
    """Random parameters of 3 layers and, of a model that is trained whole, of what is around them."""
    rng = np.random.default_rng(0)

    def some(*shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    layers = {"mlp": {"kernel": some(3, 8, 16)}, "norm": {"weight": some(3, 8)}}
    return {"layers": layers} | ({"embedding": some(20, 8), "norm": {"weight": some(8)}} if whole else {})


def gradients(like, number):
    rng = np.random.default_rng(number + 1)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), like)


def optimizer(**levers) -> Optimizer:
    return make_optimizer(dataclasses.replace(SETTINGS, **levers), make_schedule(SETTINGS, 10))


def updated(start, updates=UPDATES, **levers):
    """Parameters and state after some updates by random gradients."""
    rule = optimizer(**levers)
    state = rule.init(start)
    state = to_host(state) if rule.offload else state
    update = jax.jit(rule.update)
    for number in range(updates):
        start, state = update(gradients(start, number), state, start, jnp.int32(number))
    return start, state


def assert_equal(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)


def second_moment(state):
    return optax.tree_utils.tree_get(state, "nu")["layers"]["mlp"]["kernel"]


def test_the_default_is_optax_itself():
    start, schedule = params(), make_schedule(SETTINGS, 10)
    mask = {
        "layers": {"mlp": {"kernel": True}, "norm": {"weight": False}}, "embedding": True, "norm": {"weight": False},
    }  # fmt: skip
    adamw = optax.adamw(schedule, 0.9, 0.999, 1e-8, weight_decay=0.1, mask=mask)
    chain = optax.chain(optax.clip_by_global_norm(1.0), adamw)
    found, expected, state = updated(start)[0], start, chain.init(start)

    @jax.jit
    def update(grads, state, expected):
        updates, state = chain.update(grads, state, expected)
        return optax.apply_updates(expected, updates), state

    for number in range(UPDATES):
        expected, state = update(gradients(expected, number), state, expected)
    assert_equal(found, expected)


@pytest.mark.parametrize(
    ("dtype", "levers"),
    [("float32", {}), ("float32", {"state_dtype": "bfloat16"}), ("bfloat16", {}), ("bfloat16", {"master": True})],
    ids=str,
)
@pytest.mark.parametrize("whole", [True, False], ids=["all parameters", "layers alone"])
def test_a_state_in_host_memory_is_updated_to_the_same_bits(dtype, levers, whole):
    start = params(dtype, whole=whole)
    here, there = updated(start, **levers), updated(start, offload=True, **levers)
    assert_equal(there, here)
    assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(there[1]) if leaf.ndim} == {"pinned_host"}


def test_master_copies_are_float32_training_whose_weights_are_cast():
    half = params("bfloat16")
    found, state = updated(half, master=True)
    masters, plain = updated(jax.tree.map(lambda x: x.astype(jnp.float32), half))
    assert_equal(state.params, masters)
    assert_equal(state.rule, plain)
    assert_equal(found, jax.tree.map(lambda x: x.astype(jnp.bfloat16), masters))


def test_bfloat16_parameters_move_on_average_as_far_as_their_updates():
    # An update is a hundredth of the spacing of bfloat16 below 1: to the nearest none of them would ever move.
    rate, number = 2**-8 / 100, 50
    start = {"layers": {"mlp": {"kernel": jnp.full((4, 64, 64), 0.75, jnp.bfloat16)}}}
    rule = make_optimizer(dataclasses.replace(SETTINGS, weight_decay=0.0), optax.constant_schedule(rate))
    update, state, found = jax.jit(rule.update), rule.init(start), start
    for step in range(number):
        found, state = update(jax.tree.map(jnp.ones_like, start), state, found, jnp.int32(step))
    moved = 0.75 - np.float64(found["layers"]["mlp"]["kernel"])
    assert moved.mean() == pytest.approx(number * rate, rel=0.03)


def test_master_copies_keep_updates_that_are_smaller_than_the_spacing_of_bfloat16():
    half, small = params("bfloat16"), {"learning_rate": 1e-6, "weight_decay": 0.0}
    rule = make_optimizer(dataclasses.replace(SETTINGS, master=True, **small), optax.constant_schedule(1e-6))
    after, state = rule.update(gradients(half, 0), rule.init(half), half, jnp.int32(0))
    assert_equal(after["embedding"], half["embedding"])
    assert not np.any(state.params["embedding"] == half["embedding"].astype(jnp.float32))


def test_moments_in_bfloat16_are_those_of_float32_to_its_spacing():
    start = params()
    (exact, float32), (found, half) = updated(start, 1), updated(start, 1, state_dtype="bfloat16")
    assert_equal(found, exact)
    for leaf, expected in zip(jax.tree.leaves(half), jax.tree.leaves(float32), strict=True):
        assert leaf.dtype == (jnp.bfloat16 if leaf.ndim else jnp.int32)
        # Rounded up or down: by less than one spacing, which is at most 2^-7 of a number.
        np.testing.assert_allclose(np.float32(leaf), np.float32(expected), rtol=2**-7)


def test_a_second_moment_in_bfloat16_still_falls_when_gradients_vanish():
    rule = optimizer(state_dtype="bfloat16")
    start = {"layers": {"mlp": {"kernel": jnp.ones((4, 64, 64))}}}
    update = jax.jit(rule.update)
    _, state = update(start, rule.init(start), start, jnp.int32(0))
    first = float(jnp.mean(second_moment(state).astype(jnp.float32)))
    for step in range(1, 201):
        _, state = update(jax.tree.map(jnp.zeros_like, start), state, start, jnp.int32(step))
    # To the nearest it would stay where it is: an update takes 0.1%, less than half a spacing.
    last = float(jnp.mean(second_moment(state).astype(jnp.float32)))
    assert last / first == pytest.approx(0.999**200, rel=0.005)


@pytest.mark.parametrize("levers", [{}, {"state_dtype": "bfloat16"}], ids=str)
def test_arrays_of_more_elements_than_32_bits_count_can_be_updated(levers):
    """The layers of a 32B model, stacked; nothing is computed."""
    start = {"layers": {"mlp": {"kernel": jax.ShapeDtypeStruct((64, 5120, 27648), jnp.bfloat16)}}}
    rule = optimizer(**levers)
    found, _ = jax.eval_shape(rule.update, start, jax.eval_shape(rule.init, start), start, jnp.int32(0))
    assert found == start
