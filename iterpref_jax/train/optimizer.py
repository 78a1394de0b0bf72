"""AdamW with warm-up and decay, as the paper trains (App. A.3) and as `transformers` schedules it.

What AdamW remembers is kept as `OptimizerSettings` say: in which dtype, with or without float32 copies of bfloat16
parameters, and in which memory.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from iterpref_jax.errors import UserError
from iterpref_jax.models.transformer import Params, is_norm
from iterpref_jax.train.gradients import float32
from iterpref_jax.train.layerwise import layer_by_layer
from iterpref_jax.train.rounding import mixed, rounded

SCHEDULES = ("cosine", "linear", "constant")
STATE_DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """AdamW's numbers and the schedule, and how AdamW's state is kept.

    `clip_norm` 0 does not clip, `warmup` is a fraction of the steps. `state_dtype` is that of the moments; `master`
    keeps float32 copies of bfloat16 parameters, which are what is updated; `offload` keeps moments and copies in the
    host's memory.
    """

    learning_rate: float
    schedule: str
    warmup: float
    b1: float
    b2: float
    eps: float
    weight_decay: float
    clip_norm: float
    state_dtype: str
    master: bool
    offload: bool

    def __post_init__(self):
        if self.schedule not in SCHEDULES:
            raise UserError(f"optimizer.schedule must be one of {', '.join(SCHEDULES)}, not {self.schedule!r}")
        if self.state_dtype not in STATE_DTYPES:
            raise UserError(f"optimizer.state_dtype must be float32 or bfloat16, not {self.state_dtype!r}")
        ranges = {
            "learning_rate": (0 < self.learning_rate < math.inf, "above 0"),
            "warmup": (0 <= self.warmup < 1, "in [0, 1)"),
            "b1": (0 <= self.b1 < 1, "in [0, 1)"),
            "b2": (0 <= self.b2 < 1, "in [0, 1)"),
            "eps": (self.eps > 0, "above 0"),
            "weight_decay": (self.weight_decay >= 0, "at least 0"),
            "clip_norm": (self.clip_norm >= 0, "at least 0 (0 = no clipping)"),
        }
        for name, (holds, wanted) in ranges.items():
            if not holds:
                raise UserError(f"optimizer.{name} must be {wanted}, got {getattr(self, name)}")


def make_schedule(settings: OptimizerSettings, steps: int) -> optax.Schedule:
    """Returns the learning rate by update: 0 -> peak over the warm-up, then down to 0 at `steps` (or constant)."""
    warmup = math.ceil(settings.warmup * steps)
    peak, rest = settings.learning_rate, max(1, steps - warmup)
    after = {
        "cosine": optax.cosine_decay_schedule(peak, rest),
        "linear": optax.linear_schedule(peak, 0.0, rest),
        "constant": optax.constant_schedule(peak),
    }[settings.schedule]
    return (
        optax.join_schedules([optax.linear_schedule(0.0, peak, max(1, warmup)), after], [warmup]) if warmup else after
    )


class Mastered(NamedTuple):
    """The state of an optimizer that keeps float32 copies of the parameters."""

    params: Params
    rule: Any


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An optax rule, and how its state is kept (see `OptimizerSettings`).

    `rule` treats every parameter by itself; gradients whose norm is above `clip_norm` (0 = any) are scaled down to it.
    """

    rule: optax.GradientTransformation
    clip_norm: float = 0.0
    state_dtype: str = "float32"
    master: bool = False
    offload: bool = False

    def init(self, params: Params) -> Any:
        """Returns the state before the first update: counters, and moments in `state_dtype`."""
        masters = float32(params)
        state = _in_dtype(self.rule.init(masters), self.state_dtype)
        return Mastered(masters, state) if self.master else state

    def shardings(self, state: Any, params: Params, replicated: Any) -> Any:
        """Returns the shardings of a state: moments and master copies lie where their parameter (`params`) lies."""

        def beside(_, sharding: jax.sharding.Sharding) -> jax.sharding.Sharding:
            return sharding.with_memory_kind("pinned_host") if self.offload else sharding

        rule: Any = self
        return optax.tree_utils.tree_map_params(rule, beside, state, params, transform_non_params=lambda _: replicated)

    def update(self, grads: Params, state: Any, params: Params, step: jax.Array) -> tuple[Params, Any]:
        """Returns the new parameters and the new state; all sums are float32."""
        # Each layer is clipped when its turn comes: all at once they would be a second copy of the gradients.
        update = functools.partial(self._update, optax.tree.norm(grads))
        if self.offload:
            return layer_by_layer(update, grads, state, params, step)
        return update(grads, state, params, step, 0)

    def _update(
        self, norm: jax.Array, grads: Params, state: Any, params: Params, step: jax.Array, layer: jax.Array | int
    ) -> tuple[Params, Any]:
        grads = _clipped(grads, norm, self.clip_norm) if self.clip_norm else grads
        masters, kept = (state.params, state.rule) if self.master else (float32(params), state)
        updates, new = self.rule.update(grads, _in_dtype(kept, "float32"), masters)
        masters: Any = optax.apply_updates(masters, updates)
        new = _rounded(new, step, layer) if self.state_dtype == "bfloat16" else new
        # Most updates are smaller than half of bfloat16's spacing: to the nearest, without a master copy that collects
        # them, they would be lost.
        collected = masters if self.master else _rounded(masters, step, layer, like=params)
        params = jax.tree.map(lambda new, old: new.astype(old.dtype), collected, params)
        return params, Mastered(masters, new) if self.master else new


def make_optimizer(settings: OptimizerSettings, schedule: optax.Schedule) -> Optimizer:
    """Returns clipping and AdamW; norms and biases are not decayed, as `transformers` does."""
    adamw = optax.adamw(
        schedule, settings.b1, settings.b2, settings.eps, weight_decay=settings.weight_decay, mask=_decayed
    )
    return Optimizer(adamw, settings.clip_norm, settings.state_dtype, settings.master, settings.offload)


def _clipped(grads: Params, norm: jax.Array, limit: float) -> Params:
    """Clips by the norm of all gradients, in the order of operations of `optax.clip_by_global_norm`."""
    return jax.tree.map(lambda grad: jnp.where(norm < limit, grad, (grad / norm) * limit), grads)


def _in_dtype(state: Any, dtype: str) -> Any:
    """Returns a rule's state with its moments in `dtype`; counters stay as they are."""
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, state)


def _rounded(tree: Any, step: jax.Array, layer: jax.Array | int, like: Any = None) -> Any:
    """Rounds floats to bfloat16 up or down by chance: all, or those that are bfloat16 in `like`.

    An update changes the second moment by at most 1 - b2 of it: less than half of bfloat16's spacing, so that to the
    nearest it would never fall.
    """

    def of(path: Any, x: jax.Array, old: jax.Array) -> jax.Array:
        if not jnp.issubdtype(x.dtype, jnp.floating) or (like is not None and old.dtype != jnp.bfloat16):
            return x
        name = zlib.crc32(jax.tree_util.keystr(path).encode())
        # Places count modulo 2^32, as `rounded` does: an array of all layers may have more elements.
        first = jnp.asarray(layer, jnp.uint32) * jnp.uint32(x.size % 2**32)
        return rounded(x, mixed(step.astype(jnp.uint32)) + jnp.uint32(name), first)

    return jax.tree_util.tree_map_with_path(of, tree, tree if like is None else like)


def _decayed(params: Params) -> Params:
    def is_decayed(path, _) -> bool:
        names = [key.key for key in path]
        return not (names[-1].endswith("bias") or is_norm(names))

    return jax.tree_util.tree_map_with_path(is_decayed, params)
