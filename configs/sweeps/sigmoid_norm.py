"""Per-token means in the link (ours): K+ is about 300 tokens and K- about 10, so sums are lopsided.

    iterpref sweep --config=configs/sweeps/sigmoid_norm.py --input=trajectories.jsonl --workdir=SWEEP

Cost: 4 variants x 3 seeds = 12 runs of about 11 chip hours of v5p (the base recipe's plan at 59k pairs and
3 epochs; planned, not measured).
Means are of the size of a token's log-ratio, so beta is larger. Expected: no result yet.
"""

from configs import sweeps


def get_config(arg: str = ""):
    return sweeps.make(
        arg,
        {
            "sigmoid": (),
            **{
                f"sigmoid_norm_beta={beta}": ("objective.link.name=sigmoid_norm", f"objective.link.beta={beta}")
                for beta in (1.0, 3.0, 10.0)
            },
        },
    )
