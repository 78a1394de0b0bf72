"""The scaling of rotary positions that a GGUF file asks for, as config.json spells it."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from iterpref_jax.errors import UserError
from iterpref_jax.models.gguf_file import GgufHeader
from iterpref_jax.models.rope import Rope

ROPE_FREQS = "rope_freqs.weight"
_YARN = {
    "yarn_attn_factor": "attention_factor", "yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow",
}  # fmt: skip


class Metadata(Protocol):
    """The hyperparameters of one file by their names without the architecture."""

    header: GgufHeader

    @property
    def head_dim(self) -> int: ...

    def get(self, key: str, default: Any = None) -> Any: ...

    def need(self, key: str) -> Any: ...

    def error(self, what: str) -> UserError: ...


def rope_scaling(metadata: Metadata) -> dict[str, Any]:
    """Returns {"rope_scaling": ...}, or {} where positions are not scaled.

    Raises:
        UserError: a kind of scaling that is not supported.
    """
    kind = metadata.get("rope.scaling.type", "none")
    if ROPE_FREQS in metadata.header.tensors:
        if kind != "none":
            raise metadata.error(f"has both {ROPE_FREQS} and rope scaling of type {kind!r}, which is not supported")
        return {"rope_scaling": _llama3(metadata)}
    if kind == "none":
        return {}
    factor = metadata.need("rope.scaling.factor")
    if kind == "linear":
        return {"rope_scaling": {"rope_type": "linear", "factor": factor}}
    if kind != "yarn":
        raise metadata.error(f"has rope scaling of type {kind!r}; supported: none, linear, yarn")
    more = {ours: metadata.get(f"rope.scaling.{key}") for key, ours in _YARN.items()}
    return {
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": metadata.need("rope.scaling.original_context_length"),
            **{key: value for key, value in more.items() if value is not None},
        }
    }


def _llama3(metadata: Metadata) -> dict[str, Any]:
    """Llama 3.1's numbers from the factors that llama.cpp divides each frequency by.

    Between the kept and the stretched waves 1 / factor rises linearly with the turns within the old context, so two
    such waves give the line. Only the ratios of the three numbers act: low_freq_factor is 1.
    """
    tensor = metadata.header.tensors[ROPE_FREQS]
    factors = tensor.elements(0, tensor.shape[0]).astype(np.float64)
    theta, factor = metadata.get("rope.freq_base", 10000.0), float(factors.max())
    frequency = 1.0 / theta ** (np.arange(len(factors)) * 2 / metadata.head_dim) / (2 * np.pi)
    between = (factors > 1) & (factors < factor)
    if factor > 1 and between.sum() >= 2:
        smooth = (1 / factors - 1 / factor) / (1 - 1 / factor)
        slope, start = np.polyfit(frequency[between], smooth[between], 1)
        # smooth = (old * frequency - low) / (high - low), low = 1.
        found = {
            "rope_type": "llama3",
            "factor": _rounded(factor),
            "low_freq_factor": 1.0,
            "high_freq_factor": _rounded(1 - 1 / start),
            "original_max_position_embeddings": round(-slope / start),
        }
        if _gives(found, theta, metadata.head_dim, factors):
            return found
    raise metadata.error(f"has {ROPE_FREQS} with factors that are not those of Llama 3.1, which is not supported")


def _rounded(number: float) -> float:
    """A number that was written with few digits, without the error of having been computed."""
    return float(f"{number:.4g}")


def _gives(scaling: dict[str, Any], theta: float, head_dim: int, factors: np.ndarray) -> bool:
    numbers = tuple(sorted((key, value) for key, value in scaling.items() if key != "rope_type"))
    plain = Rope(rope_type="default", rope_theta=theta).frequencies(head_dim)[0]
    scaled = Rope(rope_type="llama3", rope_theta=theta, scaling=numbers).frequencies(head_dim)[0]
    return len(factors) == head_dim // 2 and np.allclose(plain / scaled, factors, rtol=1e-4)
