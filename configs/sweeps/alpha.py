"""alpha, the weight of NLL(y+): the paper's table 15; 0 is Target-DPO.

    iterpref sweep --config=configs/sweeps/alpha.py --input=trajectories.jsonl --workdir=SWEEP

Cost: 5 variants x 3 seeds = 15 runs of about 11 chip hours of v5p (the base recipe's plan at 59k pairs and
3 epochs; planned, not measured).
The paper uses 1.0, the first variant; the other values are ours. What alpha means depends on objective.nll_norm.
Expected: no result of ours yet.
"""

from configs import sweeps


def get_config(arg: str = ""):
    return sweeps.make(
        arg,
        {
            "alpha=1.0": (),
            "alpha=0": sweeps.RECIPES["target_dpo"],
            "alpha=0.1": ("objective.alpha=0.1",),
            "alpha=0.5": ("objective.alpha=0.5",),
            "alpha=2.0": ("objective.alpha=2.0",),
        },
    )
