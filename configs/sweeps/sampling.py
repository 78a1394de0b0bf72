"""Pairs from debugging against pairs from sampling: the paper's table 7.

    iterpref sweep --config=configs/sweeps/sampling.py --input=debugging=histories.jsonl \\
      --input=sampling=pairs.jsonl --workdir=SWEEP

`sampling` are pairs of a passing and a failing answer that were drawn independently. Give both files the same task
names, so that the same tasks are held out; all are evaluated on the held-out pairs of `debugging`.

Cost: 4 variants x 3 seeds = 12 runs of about 11 chip hours of v5p (the base recipe's plan at 59k pairs and
3 epochs; planned, not measured).
Expected: no result of ours yet. Samples differ nearly everywhere, so D- is long and build.filters.max_focus_lines drops
many of them: look at the datasets' reports before comparing.
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
