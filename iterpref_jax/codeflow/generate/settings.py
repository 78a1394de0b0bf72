"""What `iterpref generate` is asked to do."""

from __future__ import annotations

import dataclasses

from iterpref_jax.codeflow.filters import FilterSettings
from iterpref_jax.codeflow.focus import FocusSettings
from iterpref_jax.codeflow.pairs import PairSettings
from iterpref_jax.errors import UserError, did_you_mean

# What the model is told of a style of tests.
STYLES = {
    "script": "Write a plain script of assert statements that runs in the same module as the program: use its names as "
    "they are, without import.",
    "unittest": "Write a unittest.TestCase. The program is the module `solution`; import from it what you test.",
    "pytest": "Write pytest functions. The program is the module `solution`; import from it what you test.",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateSettings:
    """Fields as configs/base.py explains them. Raises UserError for values that cannot work."""

    seed: int
    tasks: int
    features: str
    features_per_task: int
    feature_temperature: float
    evolve_rounds: int
    chat: bool
    prompts: str
    test_style: str
    min_checks: int
    max_refinements: int
    temperature: float
    top_p: float
    max_tokens: int
    judge_temperature: float
    min_coverage: float
    min_test_score: int
    judge_pairs: bool

    def __post_init__(self) -> None:
        if self.test_style not in STYLES:
            raise UserError(
                f"generate.test_style: {self.test_style!r} is not one of {', '.join(STYLES)}"
                + did_you_mean(self.test_style, STYLES)
            )
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise UserError(f"generate.{name}: wanted at least {least}, got {getattr(self, name)}")
        for name, most in _MOST.items():
            if getattr(self, name) > most:
                raise UserError(f"generate.{name}: wanted at most {most}, got {getattr(self, name)}")
        for name in ("feature_temperature", "top_p"):
            if getattr(self, name) <= 0:
                raise UserError(f"generate.{name}: wanted a number above 0, got {getattr(self, name)}")


_LEAST = dict(
    tasks=1, features_per_task=1, evolve_rounds=0, min_checks=1, max_refinements=0, temperature=0, max_tokens=1,
    judge_temperature=0, min_coverage=0, min_test_score=0,
)  # fmt: skip
_MOST = dict(top_p=1, min_coverage=1, min_test_score=5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairingSettings:
    """How trajectories become pairs: as `iterpref build` does it, by the same sections of the config."""

    pairs: PairSettings
    filters: FilterSettings
    focus: FocusSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Beside the config: `samples` programs a task instead of debugging (0 = debug), and shard (number, count)."""

    generate: GenerateSettings
    pairing: PairingSettings
    samples: int
    shard: tuple[int, int]

    def __post_init__(self) -> None:
        number, count = self.shard
        if not 0 <= number < count:
            raise UserError(f"--shard: wanted I/N with I from 0 to N - 1, got {number}/{count}")
        if self.samples < 0 or self.samples == 1:
            raise UserError(f"--from-samples: wanted at least 2 programs a task, got {self.samples}")
