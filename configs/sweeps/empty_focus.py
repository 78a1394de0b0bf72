"""Repairs that only insert (ours): dropped, kept with the rejected side at weight 0, or anchored.

    iterpref sweep --config=configs/sweeps/empty_focus.py --input=trajectories.jsonl --workdir=SWEEP

Cost: 3 variants x 3 seeds = 9 runs of about 11 chip hours of v5p (the base recipe's plan at 59k pairs and
3 epochs; planned, not measured).
14-23% of real repairs have an empty D-. Dropping them leaves fewer pairs: set train.steps for equal compute. The
held-out pairs are those of `anchor`, which has all of them. Expected: no result yet.
"""

from configs import sweeps


def get_config(arg: str = ""):
    return sweeps.make(
        arg,
        {f"{empty}": (f"build.focus.empty={empty}",) for empty in ("anchor", "drop", "keep")},
    )
