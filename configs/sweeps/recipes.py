"""Recipes: the paper's tables 1, 3 and 16.

    iterpref sweep --config=configs/sweeps/recipes.py --input=trajectories.jsonl --workdir=SWEEP

Cost: 9 variants x 3 seeds = 27 runs of about 11 chip hours of v5p (the base recipe's plan at 59k pairs and
3 epochs; planned, not measured; about 15 for `dpo` and `rpo`, 10 for `sft`).
Expected (paper): in table 16 (average of 7 columns) SFT on y+ alone has 63.2 and Target-RPO 65.3; over all its
benchmarks DPO has 41.1, RPO 41.4, Target-DPO 55.3, Target-RPO 56.3, the base model 43.9; `symmetric` fails alone. Most
of the gain is SFT, so `sft` is what the others are compared with. Updates and pairs are equal; `dpo` and `rpo` read
more tokens.
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
