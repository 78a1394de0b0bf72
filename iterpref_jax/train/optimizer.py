"""AdamW with warm-up and decay, as the paper trains (App. A.3) and as `transformers` schedules it."""

from __future__ import annotations

import dataclasses
import math

import jax
import optax

from iterpref_jax.errors import UserError
from iterpref_jax.models.transformer import Params

SCHEDULES = ("cosine", "linear", "constant")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """AdamW's numbers and the schedule; `clip_norm` 0 does not clip, `warmup` is a fraction of the steps."""

    learning_rate: float
    schedule: str
    warmup: float
    b1: float
    b2: float
    eps: float
    weight_decay: float
    clip_norm: float

    def __post_init__(self):
        if self.schedule not in SCHEDULES:
            raise UserError(f"optimizer.schedule must be one of {', '.join(SCHEDULES)}, not {self.schedule!r}")
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


def make_optimizer(settings: OptimizerSettings, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Returns clipping and AdamW; norms and biases are not decayed, as `transformers` does."""
    adamw = optax.adamw(
        schedule, settings.b1, settings.b2, settings.eps, weight_decay=settings.weight_decay, mask=_decayed
    )
    return optax.chain(optax.clip_by_global_norm(settings.clip_norm), adamw) if settings.clip_norm else adamw


def _decayed(params: Params) -> Params:
    def is_decayed(path, _) -> bool:
        names = [key.key for key in path]
        return not (names[-1].endswith("bias") or any("norm" in name for name in names))

    return jax.tree_util.tree_map_with_path(is_decayed, params)
