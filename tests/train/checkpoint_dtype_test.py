"""A run that goes on with its state in other dtypes, or with other copies, than it was saved with."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iterpref_jax.train.checkpoint import Checkpoints
from tests.support.states import make_state, restored, same, shapes_of

PLAIN = make_state()
HALF_MOMENTS = make_state(state_dtype="bfloat16")
HALF = make_state(param_dtype="bfloat16")
MASTERED = make_state(param_dtype="bfloat16", master=True)


def cast(tree, dtype):
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def through(folder, saved, like):
    """`saved` as a run reads it that keeps its state `like` this one."""
    with contextlib.closing(Checkpoints(str(folder), keep=1, writing=True)) as checkpoints:
        checkpoints.save(1, saved, {"step": 1})
        checkpoints.wait()
        return restored(checkpoints, 1, like)


@pytest.mark.parametrize("state", [PLAIN, HALF_MOMENTS, HALF, MASTERED], ids=["plain", "moments", "half", "mastered"])
def test_every_kind_of_state_comes_back_bit_for_bit_and_without_a_notice(tmp_path, capsys, state):
    assert same(through(tmp_path, state, state), state)
    assert capsys.readouterr().err == ""


def test_moments_become_bfloat16_with_a_notice_and_parameters_stay(tmp_path, capsys):
    state = through(tmp_path, PLAIN, HALF_MOMENTS)
    assert same(state.params, PLAIN.params)
    assert same(state.opt_state, cast(PLAIN.opt_state, "bfloat16"))
    assert "checkpoint 1: opt_state/0/nu/layers/q_proj and others change float32 -> bfloat16" in capsys.readouterr().err


def test_moments_become_float32_without_losing_anything(tmp_path):
    state = through(tmp_path, HALF_MOMENTS, PLAIN)
    assert same(state.opt_state, cast(HALF_MOMENTS.opt_state, "float32"))


def test_float32_parameters_become_master_copies(tmp_path):
    state = through(tmp_path, PLAIN, MASTERED)
    assert same(state.params, cast(PLAIN.params, "bfloat16"))
    assert same(state.opt_state.params, PLAIN.params)
    assert same(state.opt_state.rule, PLAIN.opt_state)


def test_master_copies_become_float32_parameters(tmp_path):
    state = through(tmp_path, MASTERED, PLAIN)
    assert same(state.params, MASTERED.opt_state.params)
    assert same(state.opt_state, MASTERED.opt_state.rule)


def test_master_copies_are_made_of_bfloat16_parameters_and_left_out_for_them(tmp_path):
    state = through(tmp_path / "made", HALF, MASTERED)
    assert same(state.opt_state.params, cast(HALF.params, "float32"))
    state = through(tmp_path / "left_out", MASTERED, HALF)
    assert same(state.params, MASTERED.params)


def test_no_two_arrays_of_a_converted_state_share_memory(tmp_path):
    # bfloat16 with copies from bfloat16 without: parameters and copies come from the same stored array.
    state = through(tmp_path, PLAIN, make_state(master=True))
    leaves = [x for x in jax.tree.leaves(state) if x.ndim]
    assert len({x.unsafe_buffer_pointer() for x in leaves}) == len(leaves)


def test_a_state_is_read_into_the_hosts_memory_and_checked_there(tmp_path):
    shapes, shardings = shapes_of(PLAIN)

    def on_host(sharding, shape):
        return sharding.with_memory_kind("pinned_host") if shape.ndim else sharding

    there = shardings._replace(opt_state=jax.tree.map(on_host, shardings.opt_state, shapes.opt_state))
    with contextlib.closing(Checkpoints(str(tmp_path), keep=1, writing=True)) as checkpoints:
        checkpoints.save(1, jax.device_put(PLAIN, there), {"step": 1})
        checkpoints.wait()
        state = checkpoints.restore(1, shapes, there, frozen={})
    assert {x.sharding.memory_kind for x in jax.tree.leaves(state.opt_state) if x.ndim} == {"pinned_host"}
    assert same(state, PLAIN)


def test_parameters_alone_are_read_in_another_dtype(tmp_path):
    shapes, shardings = shapes_of(HALF)
    with contextlib.closing(Checkpoints(str(tmp_path), keep=1, writing=True)) as checkpoints:
        checkpoints.save(1, PLAIN, {"step": 1})
        checkpoints.wait()
        params = checkpoints.restore_params(1, shapes.params, shardings.params)
    expected = np.asarray(cast(PLAIN.params, "bfloat16")["embedding"])
    assert np.array_equal(np.asarray(params["embedding"]), expected)
