"""Ablations: a base config, named variants of it and seeds. `iterpref sweep --config=configs/sweeps/NAME.py ...`

Every file takes `:tiny` (the base config's own), `:config=FILE.py` (another base, beside configs/base.py) and
`:seeds=N`; words are joined by commas: `configs/sweeps/beta.py:config=target_rpo_qwen2_5_coder_0_5b.py,seeds=5`.
"""

from __future__ import annotations

import ml_collections

from configs import base

BASE = "target_rpo_qwen2_5_coder_7b.py"
# The overrides of a recipe; those of its dataset come where it needs another focus.
RECIPES = {
    "sft": ("objective.recipe=sft",),
    "dpo": ("objective.recipe=dpo", "objective.alpha=0.0"),
    "rpo": ("objective.recipe=rpo",),
    "target_dpo": ("objective.recipe=target_dpo", "objective.alpha=0.0"),
    "target_rpo": (),
    "symmetric": ("objective.recipe=symmetric", "objective.alpha=0.0"),
    "symmetric_rpo": ("objective.recipe=symmetric_rpo",),
    "hybrid": ("objective.recipe=hybrid",),
    "diff_augment": ("objective.recipe=diff_augment", "build.focus.mode=augment"),
    "prefix_suffix": ("objective.recipe=prefix_suffix", "build.focus.mode=prefix_suffix"),
    "token_focus": ("objective.recipe=token_focus", "build.focus.mode=token"),
}


def make(
    arg: str, variants: dict[str, tuple[str, ...]], *, config: str = BASE, overrides: tuple[str, ...] = ()
) -> ml_collections.ConfigDict:
    """Returns a sweep; the first variant is what the others are compared with."""
    options = base.parse_arg(arg, tiny=False, config=config, seeds=3)
    sweep = ml_collections.ConfigDict()
    # A file (and :ARG) relative to the sweep's file.
    sweep.config = f"../{options.config}" + (":tiny" if options.tiny else "")
    sweep.overrides = overrides
    sweep.variants = tuple({"name": name, "overrides": words} for name, words in variants.items())
    sweep.seeds = tuple(range(options.seeds))
    # `iterpref` words to run after each run; scores of OUT/results.json join the table. Such as
    # "eval --config={config} --workdir={run} --benchmark=humaneval --out={out}".
    sweep.commands = ()
    return sweep
