"""Rotary position embeddings: the kinds that `config.json` may ask for, and their frequencies."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from iterpref_jax.errors import UserError, did_you_mean

Scaling = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rope:
    """One kind of rotation: Hugging Face's `rope_type`, its base, and the numbers that scale it, sorted by name."""

    rope_type: str
    rope_theta: float
    scaling: tuple[tuple[str, Any], ...] = ()

    def to_hf(self) -> dict[str, Any]:
        """Returns a `rope_parameters` dict that `read_rope` and `transformers` read back."""
        return {"rope_type": self.rope_type, "rope_theta": self.rope_theta, **dict(self.scaling)}

    def frequencies(self, head_dim: int) -> tuple[np.ndarray, float]:
        """Returns the angle per position [H/2], float32, and the factor on cos and sin."""
        exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
        plain = np.float32(1) / np.float32(self.rope_theta) ** exponent
        frequency, factor = ROPE_KINDS[self.rope_type].scale(plain, self.rope_theta, dict(self.scaling))
        return frequency.astype(np.float32), factor


@dataclasses.dataclass(frozen=True)
class RopeKind:
    """A `rope_type`: the numbers it needs, those it may have, and how it changes the plain frequencies [H/2]."""

    needs: tuple[str, ...]
    may: tuple[str, ...]
    scale: Callable[[np.ndarray, float, Scaling], tuple[np.ndarray, float]]


def _llama3(plain: np.ndarray, theta: float, scaling: Scaling) -> tuple[np.ndarray, float]:
    """Llama 3.1: long waves are stretched, short ones kept, those between interpolated."""
    low, high, factor = scaling["low_freq_factor"], scaling["high_freq_factor"], scaling["factor"]
    waves = scaling["original_max_position_embeddings"] * plain / (2 * math.pi)  # whole turns within the old context
    smooth = np.clip((waves - low) / (high - low), 0, 1)
    return (1 - smooth) * plain / factor + smooth * plain, 1.0


def _yarn(plain: np.ndarray, theta: float, scaling: Scaling) -> tuple[np.ndarray, float]:
    """YaRN (arXiv 2309.00071): frequencies by the number of turns within the old context, and a temperature."""
    factor, half = scaling["factor"], len(plain)

    def dim_of(turns: float) -> float:
        turns_dim = math.log(scaling["original_max_position_embeddings"] / (turns * 2 * math.pi))
        return 2 * half * turns_dim / (2 * math.log(theta))

    low, high = dim_of(scaling.get("beta_fast") or 32), dim_of(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * half - 1)
    ramp = np.clip((np.arange(half, dtype=np.float32) - low) / (high - low or 0.001), 0, 1)
    return ramp * plain / factor + (1 - ramp) * plain, _yarn_factor(scaling)


def _yarn_factor(scaling: Scaling) -> float:
    def temperature(mscale: float) -> float:
        return 0.1 * mscale * math.log(scaling["factor"]) + 1.0 if scaling["factor"] > 1 else 1.0

    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])
    mscale, mscale_all_dim = scaling.get("mscale"), scaling.get("mscale_all_dim")
    return temperature(mscale) / temperature(mscale_all_dim) if mscale and mscale_all_dim else temperature(1.0)


ROPE_KINDS = {
    "default": RopeKind((), (), lambda plain, theta, scaling: (plain, 1.0)),
    "linear": RopeKind(("factor",), (), lambda plain, theta, scaling: (plain / np.float32(scaling["factor"]), 1.0)),
    "llama3": RopeKind(
        ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"), (), _llama3
    ),
    "yarn": RopeKind(
        ("factor", "original_max_position_embeddings"),
        ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
        _yarn,
    ),
}


def rope_section(hf: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Returns the dict under `key`, {} where there is none or null.

    Raises:
        UserError: it is no dict.
    """
    found = hf.get(key)
    if found is not None and not isinstance(found, Mapping):
        raise UserError(f"{key} must be a dict or null, got {found!r}")
    return dict(found or {})


def read_rope(raw: Mapping[str, Any], theta: float, max_position: int | None) -> Rope:
    """Reads one `rope_parameters` (or old `rope_scaling`) dict; `theta` is the base where it names none.

    Args:
        max_position: config.json's max_position_embeddings, the old context where a kind needs one and names none.

    Raises:
        UserError: a kind, a key or a value that is not implemented.
    """
    # transformers takes a null truncate as false, and every other null as absent.
    found = {key: value for key, value in raw.items() if value is not None}
    found |= {"truncate": False} if "truncate" in raw and raw["truncate"] is None else {}
    # All of a head is rotated, as everywhere here; transformers 5 may write so.
    if found.get("partial_rotary_factor") == 1:
        del found["partial_rotary_factor"]
    # The name before transformers 4.43; both may be there.
    old_name = found.pop("type", "default")
    rope_type = found.pop("rope_type", old_name)
    if not isinstance(rope_type, str) or rope_type not in ROPE_KINDS:
        hint = did_you_mean(str(rope_type), ROPE_KINDS)
        raise UserError(f"rope_type {rope_type!r} is not implemented; implemented: {', '.join(ROPE_KINDS)}{hint}")
    theta = found.pop("rope_theta", theta)
    kind = ROPE_KINDS[rope_type]
    if "original_max_position_embeddings" in kind.needs and max_position is not None:
        found.setdefault("original_max_position_embeddings", max_position)
    _check(rope_type, kind, found)
    if isinstance(theta, bool) or not isinstance(theta, (int, float)) or not 0 < theta < math.inf:
        raise UserError(f"rope_theta must be a number above 0, got {theta!r}")
    return Rope(rope_type=rope_type, rope_theta=float(theta), scaling=tuple(sorted(found.items())))


def _check(rope_type: str, kind: RopeKind, found: Mapping[str, Any]) -> None:
    unknown = sorted(set(found) - {*kind.needs, *kind.may})
    if unknown:
        raise UserError(f"rope parameter(s) {unknown} are not implemented for rope_type {rope_type!r}")
    missing = [name for name in kind.needs if name not in found]
    if missing:
        raise UserError(f"rope_type {rope_type!r} needs {', '.join(missing)}")
    for name, value in found.items():
        if name != "truncate" and (isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0):
            raise UserError(f"rope parameter {name} must be a number above 0, got {value!r}")


def rotary(depth: jax.Array, rope: Rope, head_dim: int) -> tuple[jax.Array, jax.Array]:
    """Returns cos and sin [..., H/2] in float32 of the rotation at each position (a token's depth in its branch)."""
    frequency, factor = rope.frequencies(head_dim)
    angle = depth[..., None].astype(jnp.float32) * frequency
    return jnp.cos(angle) * factor, jnp.sin(angle) * factor


def rotate(x_RTNH: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates the two halves of the head dim (the Llama form of RoPE)."""
    first, second = jnp.split(x_RTNH.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x_RTNH.dtype)
