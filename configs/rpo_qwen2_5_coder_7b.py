"""Qwen2.5-Coder-7B: DPO over all tokens plus NLL of the chosen side (baseline of the paper, table 2).

    iterpref train --config=configs/rpo_qwen2_5_coder_7b.py --config.data.path=DATA --workdir=RUN

Records and options (`:tiny`, `:released`) as in target_rpo_qwen2_5_coder_7b.py.

Plan (`iterpref plan --config=... --topology=v5p:2x2x2`, 8 chips; pairs of 300 + 724 tokens): 17.8 of 95.73 GiB a chip,
8 x 8 rows an update of 128 pairs; at assumed speeds 4.8 s an update and 8.3 chip hours an epoch of 100,000 pairs.
"""

from configs import target_rpo_qwen2_5_coder_7b


def get_config(arg: str = ""):
    config = target_rpo_qwen2_5_coder_7b.get_config(arg)
    config.objective.recipe = "rpo"
    config.objective.alpha = 1.0
    return config
