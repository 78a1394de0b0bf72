"""Focus by lines against focus by tokens within replaced lines (ours).

    iterpref sweep --config=configs/sweeps/token_focus.py --input=trajectories.jsonl --workdir=SWEEP

Cost: 2 variants x 3 seeds = 6 runs of about 11 chip hours of v5p (the base recipe's plan at 59k pairs and
3 epochs; planned, not measured).
Expected: no result yet. Token focus is a few times smaller: at equal beta it moves the margin less.
"""

from configs import sweeps


def get_config(arg: str = ""):
    return sweeps.make(
        arg,
        {name: sweeps.RECIPES[name] for name in ("target_rpo", "token_focus")},
    )
