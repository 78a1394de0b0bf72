"""What `iterpref plan` reads besides the run's own settings."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from iterpref_jax.data.schema import Example
from iterpref_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairLengths:
    """The tokens of a pair where there is no dataset.

    `common` tokens begin both completions; the `focus` of either ends at token `focus_end` of it.
    """

    prompt: int
    completion: int
    common: int
    focus_end: int
    focus: int

    def __post_init__(self):
        if min(self.prompt, self.focus) < 1 or not (
            0 <= self.common < self.completion and self.focus <= self.focus_end <= self.completion
        ):
            raise UserError(
                "plan.pair: prompt and focus must be at least 1, common below completion, and focus_end between focus "
                f"and completion; got {dataclasses.asdict(self)}"
            )

    def describe(self) -> str:
        return (
            f"prompt {self.prompt}, completions {self.completion} ({self.common} in common), focus {self.focus} tokens "
            f"up to token {self.focus_end}"
        )

    def example(self) -> Example:
        """Returns a pair of these lengths."""
        place = np.arange(self.completion)
        focus = ((place >= self.focus_end - self.focus) & (place < self.focus_end)).astype(np.uint8)
        chosen = 1 + place.astype(np.int32)
        rejected = np.where(place < self.common, chosen, 0).astype(np.int32)
        return Example("", "", np.ones(self.prompt, np.int32), chosen, rejected, focus, focus)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Efficiency:
    """Parts of the data sheets' figures that a real step is taken to reach."""

    compute: float
    memory: float
    links: float
    network: float

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if not 0 < value <= 1:
                raise UserError(f"plan.efficiency.{name} must be above 0 and at most 1, got {value}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """`model` is the config.json of model.path, for a plan without its files; `pairs` are those of an epoch.

    Both, and `pair`, stand for what is not there: a folder of model.path and a dataset say it themselves.
    """

    model: dict[str, Any]
    pairs: int
    pair: PairLengths
    efficiency: Efficiency

    def __post_init__(self):
        if self.pairs < 1:
            raise UserError(f"plan.pairs must be at least 1, got {self.pairs}")
