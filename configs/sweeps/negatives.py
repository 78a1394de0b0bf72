"""Which failing version is rejected: the paper's table 20, and `all` of them (ours).

    iterpref sweep --config=configs/sweeps/negatives.py --input=trajectories.jsonl --workdir=SWEEP

Cost: 4 variants x 3 seeds = 12 runs of about 11 chip hours of v5p (the base recipe's plan at 59k pairs and
3 epochs; planned, not measured).
Expected (paper, average): first 62.2, last 63.7, random 64.4. `all` has more pairs and so longer epochs; for equal
updates say --config.train.steps=N --config.train.epochs=0.
"""

from configs import sweeps


def get_config(arg: str = ""):
    return sweeps.make(
        arg,
        {
            "random": (),
            "first": ("build.pairs.choose=first",),
            "last": ("build.pairs.choose=last",),
            "all": ("build.pairs.choose=all",),
        },
    )
