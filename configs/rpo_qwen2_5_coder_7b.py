"""Qwen2.5-Coder-7B: DPO over all tokens plus NLL of the chosen side (baseline of the paper, table 2).

    iterpref train --config=configs/rpo_qwen2_5_coder_7b.py --config.data.path=DATA --workdir=RUN

Records, hardware and options (`:tiny`, `:released`) as in target_rpo_qwen2_5_coder_7b.py.
"""

from configs import target_rpo_qwen2_5_coder_7b


def get_config(arg: str = ""):
    config = target_rpo_qwen2_5_coder_7b.get_config(arg)
    config.objective.recipe = "rpo"
    config.objective.alpha = 1.0
    return config
