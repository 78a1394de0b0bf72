"""Recipes: the paper's tables 1, 3 and 16.

    iterpref sweep --config=configs/sweeps/recipes.py --input=trajectories.jsonl --workdir=SWEEP

Cost: 9 variants x 3 seeds = 27 runs of about 14 chip hours of v5p (the base recipe's plan at 59k pairs and
3 epochs; planned, not measured).
Expected (paper, 7-column average of table 16): SFT on y+ alone 63.2, Target-RPO 65.3; table 1 puts DPO and RPO below the
base model's average of 43.9 and Target-DPO at 55.3, Target-RPO at 56.3; `symmetric` fails alone. Most of the gain is SFT,
so `sft` is what all others are compared with. Updates and pairs are equal; `dpo`, `rpo` read more tokens (see the table's cost).
"""

from configs import sweeps


def get_config(arg: str = ""):
    return sweeps.make(
        arg,
        {
            name: sweeps.RECIPES[name]
            for name in (
                "sft",
                "dpo",
                "rpo",
                "target_dpo",
                "target_rpo",
                "symmetric",
                "symmetric_rpo",
                "hybrid",
                "diff_augment",
            )
        },
    )
