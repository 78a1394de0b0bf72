"""beta of the link: the paper's table 14.

    iterpref sweep --config=configs/sweeps/beta.py --input=trajectories.jsonl --workdir=SWEEP

Cost: 4 variants x 3 seeds = 12 runs of about 11 chip hours of v5p (the base recipe's plan at 59k pairs and
3 epochs; planned, not measured).
The paper uses 0.1, the first variant; the other values are ours. Margins of rewards scale with beta: compare focus/*
and logratios/*, which do not. Expected: no result of ours yet.
"""

from configs import sweeps


def get_config(arg: str = ""):
    return sweeps.make(
        arg,
        {f"beta={beta}": (f"objective.link.beta={beta}",) for beta in (0.1, 0.05, 0.2, 0.5)},
    )
