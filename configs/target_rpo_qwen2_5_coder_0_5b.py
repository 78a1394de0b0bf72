"""Target-RPO of Qwen2.5-Coder-0.5B-Instruct.

    iterpref build --config=configs/target_rpo_qwen2_5_coder_0_5b.py --input=pairs.jsonl --out=DATA
    iterpref train --config=configs/target_rpo_qwen2_5_coder_0_5b.py --config.data.path=DATA --workdir=RUN

Hardware: one accelerator with 24 GB (float32 parameters, gradients and AdamW: 8 GB, plus
activations).
Expected: no result of ours yet.
"""

from configs import base


def get_config(arg: str = ""):
    options = base.parse_arg(arg, tiny=False)
    config = base.get_config()
    config.model.path = "Qwen/Qwen2.5-Coder-0.5B-Instruct"
    config.build.text.tokenizer = config.model.get_oneway_ref("path")
    config.rows.tokens = 2048
    config.rows.rows_per_microbatch = 2
    return base.make_tiny(config) if options.tiny else config
