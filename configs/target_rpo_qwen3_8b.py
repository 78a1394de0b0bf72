"""Target-RPO of Qwen3-8B.

    iterpref build --config=configs/target_rpo_qwen3_8b.py --input=pairs.jsonl --out=DATA
    iterpref train --config=configs/target_rpo_qwen3_8b.py --config.data.path=DATA --workdir=RUN

Hardware: 8 accelerators with 80 GB (float32 parameters, gradients and AdamW: 131 GB over the fsdp axis, plus
activations).
Expected: no result of ours yet.
"""

from configs import base


def get_config(arg: str = ""):
    options = base.parse_arg(arg, tiny=False)
    config = base.get_config()
    config.model.path = "Qwen/Qwen3-8B"
    config.build.text.tokenizer = config.model.get_oneway_ref("path")
    return base.make_tiny(config) if options.tiny else config
