"""How the focus is found: the paper's table 19 (lines outside the LCS against common prefix and suffix).

    iterpref sweep --config=configs/sweeps/diff_method.py --input=trajectories.jsonl --workdir=SWEEP

Cost: 2 variants x 3 seeds = 6 runs of about 11 chip hours of v5p (the base recipe's plan at 59k pairs and
3 epochs; planned, not measured).
The two differ only where a repair has several places. Expected: no result of ours yet.
"""

from configs import sweeps


def get_config(arg: str = ""):
    return sweeps.make(
        arg,
        {"lcs": (), "prefix_suffix": sweeps.RECIPES["prefix_suffix"]},
    )
