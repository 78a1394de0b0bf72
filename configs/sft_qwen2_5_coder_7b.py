"""Qwen2.5-Coder-7B: NLL of the repaired programs alone, the control of every preference claim (paper, table 16).

    iterpref train --config=configs/sft_qwen2_5_coder_7b.py --config.data.path=DATA --workdir=RUN

Records, hardware and options (`:tiny`, `:released`) as in target_rpo_qwen2_5_coder_7b.py.
"""

from configs import target_rpo_qwen2_5_coder_7b


def get_config(arg: str = ""):
    config = target_rpo_qwen2_5_coder_7b.get_config(arg)
    config.objective.recipe = "sft"
    config.objective.alpha = 1.0
    return config
