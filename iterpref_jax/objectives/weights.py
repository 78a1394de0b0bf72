"""Recipes: which tokens of a pair carry loss. Weights are data; nothing after this module knows a recipe's name.

Definitions: method.md of the design, after IterPref / Target-DPO (arXiv 2503.02783), eqs. 4-8, tables 3, 16 and 19.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from iterpref_jax.errors import UserError, did_you_mean

NLL_NORMS = ("example", "token", "sum")

# Where a target lies in its completion: before both sides differ, in the focus, or elsewhere. `RowBatch.part_RE` holds
# these numbers; only metrics read them.
PARTS = ("shared", "focus", "rest")

Selection = Literal["all", "focus", "hybrid", "none"]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Which tokens of the chosen and rejected side are weighted, and whether NLL(y+) is added.

    `focus_mode` is how the records' focus must have been found; None where no focus is used. `hybrid` weighs half of
    the pairs (drawn by seed and record) as `all` and the other half as `focus`.
    """

    chosen: Selection
    rejected: Selection
    nll: bool
    focus_mode: str | None

    @property
    def has_preference(self) -> bool:
        return self.chosen != "none" or self.rejected != "none"


RECIPES: dict[str, Recipe] = {
    "sft": Recipe("none", "none", True, None),
    "dpo": Recipe("all", "all", False, None),
    "rpo": Recipe("all", "all", True, None),
    "target_dpo": Recipe("all", "focus", False, "line"),
    "target_rpo": Recipe("all", "focus", True, "line"),
    "diff_augment": Recipe("all", "focus", True, "augment"),
    "hybrid": Recipe("all", "hybrid", True, "line"),
    "symmetric": Recipe("focus", "focus", False, "line"),
    "symmetric_rpo": Recipe("focus", "focus", True, "line"),
    "prefix_suffix": Recipe("all", "focus", True, "prefix_suffix"),
    "token_focus": Recipe("all", "focus", True, "token"),
}


def find_recipe(name: str) -> Recipe:
    """Returns the named recipe, or raises a `UserError` with the closest name."""
    if name not in RECIPES:
        raise UserError(f"objective.recipe {name!r} is not one of {', '.join(RECIPES)}{did_you_mean(name, RECIPES)}")
    return RECIPES[name]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairWeights:
    """Per-token weights of one pair: [chosen tokens], [rejected tokens], [chosen tokens]; float32."""

    chosen: np.ndarray
    rejected: np.ndarray
    nll: np.ndarray


def pair_weights(
    recipe: Recipe, chosen_focus: np.ndarray, rejected_focus: np.ndarray, *, record: int, seed: int, nll_norm: str
) -> PairWeights:
    """Returns the weights of one pair; `nll` already holds 1 / tokens where the NLL is a mean over the example."""
    nll = np.full(len(chosen_focus), float(recipe.nll), np.float32)
    if nll_norm == "example":
        nll /= max(1, len(nll))
    rejected = recipe.rejected
    if rejected == "hybrid":
        rejected = "all" if draws_all(record, seed) else "focus"
    return PairWeights(chosen=_select(recipe.chosen, chosen_focus), rejected=_select(rejected, rejected_focus), nll=nll)


def draws_all(record: int | np.ndarray, seed: int) -> np.ndarray:
    """True for the half of the records that `hybrid` weighs in full: a fixed coin per (seed, record)."""
    return mix64(np.asarray(record, np.uint64) + mix64(np.uint64(seed))) >> np.uint64(63) == 1


def mix64(x: np.ndarray | np.integer) -> np.ndarray:
    """The splitmix64 finaliser: a hash whose values no library version can change, unlike a random generator's."""
    with np.errstate(over="ignore"):
        x = np.asarray(x, np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def _select(selection: Selection, focus: np.ndarray) -> np.ndarray:
    if selection == "focus":
        return focus.astype(np.float32)
    return np.full(len(focus), float(selection == "all"), np.float32)
