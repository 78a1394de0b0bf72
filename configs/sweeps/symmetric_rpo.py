"""D+ against D- with NLL on all of y+ (ours): is the rest of y+ in the preference term worth it?

    iterpref sweep --config=configs/sweeps/symmetric_rpo.py --input=trajectories.jsonl --workdir=SWEEP

Cost: 4 variants x 3 seeds = 12 runs of about 11 chip hours of v5p (the base recipe's plan at 59k pairs and
3 epochs; planned, not measured).
Expected: the paper's `symmetric` fails without NLL; with it there is no result yet.
"""

from configs import sweeps


def get_config(arg: str = ""):
    return sweeps.make(
        arg,
        {name: sweeps.RECIPES[name] for name in ("target_rpo", "symmetric_rpo", "symmetric", "sft")},
    )
