"""Target-DPO of Qwen2.5-Coder-7B: the focal preference term alone (arXiv 2503.02783, eqs. 4-6).

    iterpref train --config=configs/target_dpo_qwen2_5_coder_7b.py --config.data.path=DATA --workdir=RUN

Records, hardware and options (`:tiny`, `:released`) as in target_rpo_qwen2_5_coder_7b.py.
Expected (paper, table 2): HumanEval 89.0, HumanEval+ 83.6, MBPP 83.1, MBPP+ 69.0; not reproduced here yet.
"""

from configs import target_rpo_qwen2_5_coder_7b


def get_config(arg: str = ""):
    config = target_rpo_qwen2_5_coder_7b.get_config(arg)
    config.objective.recipe = "target_dpo"
    config.objective.alpha = 0.0
    return config
