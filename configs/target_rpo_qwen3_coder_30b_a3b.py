"""Target-RPO of Qwen3-Coder-30B-A3B-Instruct (a mixture of experts).

    iterpref build --config=configs/target_rpo_qwen3_coder_30b_a3b.py --input=pairs.jsonl --out=DATA
    iterpref train --config=configs/target_rpo_qwen3_coder_30b_a3b.py --config.data.path=DATA --workdir=RUN

Hardware: 16 accelerators with 80 GB or more (float32 parameters, gradients and AdamW: 488 GB over the fsdp axis, plus
activations).
Expected: no result of ours yet.

Experts drop no token; the router keeps its load-balancing loss with the weight of its pre-training.
"""

from configs import base


def get_config(arg: str = ""):
    options = base.parse_arg(arg, tiny=False)
    config = base.get_config()
    config.model.path = "Qwen/Qwen3-Coder-30B-A3B-Instruct"
    config.build.text.tokenizer = config.model.get_oneway_ref("path")
    config.rows.rows_per_microbatch = 16
    config.optimizer.learning_rate = 5e-6
    config.objective.router_aux_loss_coef = 0.001
    return base.make_tiny(config) if options.tiny else config
