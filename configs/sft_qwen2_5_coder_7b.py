"""Qwen2.5-Coder-7B: NLL of the repaired programs alone, the control of every preference claim (paper, table 16).

    iterpref train --config=configs/sft_qwen2_5_coder_7b.py --config.data.path=DATA --workdir=RUN

Records and options (`:tiny`, `:released`) as in target_rpo_qwen2_5_coder_7b.py.

Plan (`iterpref plan --config=... --topology=v5p:2x2x2`, 8 chips; pairs of 300 + 724 tokens): 18.2 of 95.73 GiB a chip,
4 x 8 rows an update of 128 pairs; at assumed speeds 3.2 s an update and 5.6 chip hours an epoch of 100,000 pairs.
"""

from configs import target_rpo_qwen2_5_coder_7b


def get_config(arg: str = ""):
    config = target_rpo_qwen2_5_coder_7b.get_config(arg)
    config.objective.recipe = "sft"
    config.objective.alpha = 1.0
    return config
