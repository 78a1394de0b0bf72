"""A small training state of several kinds of arrays, and the checkpoints of it."""

import jax
import numpy as np
import optax

from iterpref_jax.train.checkpoint import Checkpoints
from iterpref_jax.train.optimizer import Optimizer
from iterpref_jax.train.step import TrainState, init_state


def make_state(seed=0, *, param_dtype="float32", state_dtype="float32", master=False, updates=1) -> TrainState:
    """A state after some updates with made gradients, so that no array is all zeros."""
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {
        "embedding": jax.random.normal(keys[0], (24, 8)).astype(param_dtype),
        "layers": {"q_proj": jax.random.normal(keys[1], (2, 8, 16)).astype(param_dtype)},
    }
    optimizer = Optimizer(optax.adamw(1e-2), 0.0, state_dtype, master)
    state = init_state(optimizer, params)
    for _ in range(updates):
        grads = jax.tree.map(lambda x: jax.random.normal(keys[2], x.shape), params)
        params, opt_state = optimizer.update(grads, state.opt_state, state.params, state.step)
        state = TrainState(state.step + 1, params, opt_state, state.frozen)
    return state


def shapes_of(state: TrainState) -> tuple[TrainState, TrainState]:
    """What `Checkpoints.restore` is asked for: shapes and shardings."""
    return jax.eval_shape(lambda: state), jax.tree.map(lambda x: x.sharding, state)


def restored(checkpoints: Checkpoints, step: int, like: TrainState) -> TrainState:
    return checkpoints.restore(step, *shapes_of(like), frozen={})


def same(a, b) -> bool:
    """Whether two states are equal in structure, dtypes and bits."""
    pairs = jax.tree.map(lambda x, y: x.dtype == y.dtype and np.array_equal(_bits(x), _bits(y)), a, b)
    return jax.tree.all(pairs)


def _bits(x) -> np.ndarray:
    return np.atleast_1d(np.asarray(x)).view(np.uint8)
