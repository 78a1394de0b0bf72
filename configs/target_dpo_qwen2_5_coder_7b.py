"""Target-DPO of Qwen2.5-Coder-7B: the focal preference term alone (arXiv 2503.02783, eqs. 4-6).

    iterpref train --config=configs/target_dpo_qwen2_5_coder_7b.py --config.data.path=DATA --workdir=RUN

Records and options (`:tiny`, `:released`) as in target_rpo_qwen2_5_coder_7b.py.

Plan (`iterpref plan --config=... --topology=v5p:2x2x2`, 8 chips; pairs of 300 + 724 tokens): 17.6 of 95.73 GiB a chip,
8 x 8 rows an update of 128 pairs; at assumed speeds 3.7 s an update and 6.4 chip hours an epoch of 100,000 pairs.
Expected (paper, table 2): HumanEval 89.0, HumanEval+ 83.6, MBPP 83.1, MBPP+ 69.0; not reproduced here yet.
"""

from configs import target_rpo_qwen2_5_coder_7b


def get_config(arg: str = ""):
    config = target_rpo_qwen2_5_coder_7b.get_config(arg)
    config.objective.recipe = "target_dpo"
    config.objective.alpha = 0.0
    return config
