"""Target-RPO of Qwen2.5-Coder-32B-Instruct.

    iterpref build --config=configs/target_rpo_qwen2_5_coder_32b.py --input=pairs.jsonl --out=DATA
    iterpref train --config=configs/target_rpo_qwen2_5_coder_32b.py --config.data.path=DATA --workdir=RUN

Hardware: 16 accelerators with 80 GB or more (float32 parameters, gradients and AdamW: 525 GB over the fsdp axis, plus
activations).
Expected: no result of ours yet.
"""

from configs import base


def get_config(arg: str = ""):
    options = base.parse_arg(arg, tiny=False)
    config = base.get_config()
    config.model.path = "Qwen/Qwen2.5-Coder-32B-Instruct"
    config.build.text.tokenizer = config.model.get_oneway_ref("path")
    config.rows.rows_per_microbatch = 16
    config.optimizer.learning_rate = 5e-6
    return base.make_tiny(config) if options.tiny else config
