"""All failing versions of a history in one tree (ours), against one drawn version.

    iterpref sweep --config=configs/sweeps/multi_branch.py --input=trajectories.jsonl --workdir=SWEEP

Cost: 3 variants x 3 seeds = 9 runs of about 11 chip hours of v5p (the base recipe's plan at 59k pairs and
3 epochs; planned, not measured).
`all` and `tree` train on the same pairs; `tree` draws histories instead of pairs and computes their common part once.
Expected: no result yet; `tree` with fewer tokens (the table's cost). Set train.steps for equal updates.
"""

from configs import sweeps


def get_config(arg: str = ""):
    return sweeps.make(
        arg,
        {
            "random": (),
            "all": ("build.pairs.choose=all",),
            "tree": ("build.pairs.choose=all", "rows.layout=tree"),
        },
    )
