"""Pairs from debugging against pairs from sampling: the paper's table 7.

    iterpref sweep --config=configs/sweeps/sampling.py --input=debugging=histories.jsonl \\
      --input=sampling=pairs.jsonl --workdir=SWEEP

`sampling` are pairs of a passing and a failing answer that were drawn independently; give both files the same task names,
so that the same tasks are held out. Cost: 4 variants x 3 seeds = 12 runs of about 14 chip hours of v5p (the base recipe's plan at 59k pairs and
3 epochs; planned, not measured).
Expected: the paper reports debugging ahead, and focal objectives of little use on samples, which differ nearly everywhere.
Both are evaluated on the held-out pairs of `debugging`.
"""

from configs import sweeps


def get_config(arg: str = ""):
    return sweeps.make(
        arg,
        {
            f"{source}_{recipe}": (*sweeps.RECIPES[recipe], f"input={source}")
            for recipe in ("target_rpo", "rpo")
            for source in ("debugging", "sampling")
        },
    )
