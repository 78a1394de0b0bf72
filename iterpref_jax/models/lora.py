"""LoRA (arXiv 2106.09685): y = x W + (alpha / rank) x A B, where W stays as it is and only A and B are trained.

Adapters are leaves `lora_a` and `lora_b` beside the kernel that they adapt. `parted` parts a tree of parameters,
`joined` puts the parts together again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from iterpref_jax.errors import UserError, did_you_mean
from iterpref_jax.models.quantized import FORMATS

LORA_A, LORA_B = "lora_a", "lora_b"
# The names of PEFT (and of config.json's families) -> ours. StarCoder2 calls its plain MLP c_fc and c_proj.
TARGETS = {
    "q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "out", "gate_proj": "gate", "up_proj": "up",
    "down_proj": "down", "c_fc": "up", "c_proj": "down",
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lora:
    """Which kernels have adapters, and how those kernels, which are not trained, are stored.

    `rank` 0 is no adapter at all; `quantize` empty stores them in model.param_dtype like everything else.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]
    quantize: str

    def __post_init__(self):
        if self.rank < 0 or (self.rank and self.alpha <= 0):
            raise UserError(f"model.lora.rank must be at least 0 and alpha above 0, got {self.rank} and {self.alpha}")
        for target in self.targets:
            if target not in TARGETS:
                hint = did_you_mean(target, TARGETS)
                raise UserError(f"model.lora.targets has {target!r}; known: {', '.join(TARGETS)}{hint}")
        if self.rank and not self.targets:
            raise UserError("model.lora.targets is empty: name the projections to adapt, such as q_proj and v_proj")
        if self.quantize and self.quantize not in FORMATS:
            hint = did_you_mean(self.quantize, FORMATS)
            raise UserError(f"model.lora.quantize must be {', '.join(FORMATS)} or empty, not {self.quantize!r}{hint}")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def targeted(self, name: str) -> bool:
        """Whether our kernel of this name (`query`, `gate`, ...) is a target."""
        return name in {TARGETS[target] for target in self.targets}

    def switched_off(self) -> Lora:
        """The same stored kernels without adapters: the reference model."""
        return dataclasses.replace(self, rank=0)


# Every parameter is trained.
NO_LORA = Lora(rank=0, alpha=1.0, targets=(), quantize="")


def adapters_of(tree: dict[str, Any]) -> dict[str, Any]:
    """Returns the part of a tree of parameters that is adapters ({} where there are none)."""
    return _select(tree, lambda name: name in (LORA_A, LORA_B))


def base_of(tree: dict[str, Any]) -> dict[str, Any]:
    """Returns the part of a tree of parameters that is not adapters."""
    return _select(tree, lambda name: name not in (LORA_A, LORA_B))


def parted(tree: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns what is trained and what stays frozen: adapters and base, or everything and {}."""
    adapters = adapters_of(tree)
    return (adapters, base_of(tree)) if adapters else (tree, {})


def joined(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Returns one tree of the leaves of both."""
    out = dict(first)
    for key, value in second.items():
        out[key] = joined(out[key], value) if key in out else value
    return out


def _select(tree: dict[str, Any], keep: Callable[[str], bool]) -> dict[str, Any]:
    out = {}
    for name, value in tree.items():
        if not isinstance(value, dict):
            if keep(name):
                out[name] = value
        elif part := _select(value, keep):
            out[name] = part
    return out
