"""Target-RPO of Llama-3.1-8B-Instruct.

    iterpref build --config=configs/target_rpo_llama3_1_8b.py --input=pairs.jsonl --out=DATA
    iterpref train --config=configs/target_rpo_llama3_1_8b.py --config.data.path=DATA --workdir=RUN

Hardware: 8 accelerators with 80 GB (float32 parameters, gradients and AdamW: 128 GB over the fsdp axis, plus
activations).
Expected: no result of ours yet.
"""

from configs import base


def get_config(arg: str = ""):
    options = base.parse_arg(arg, tiny=False)
    config = base.get_config()
    config.model.path = "meta-llama/Llama-3.1-8B-Instruct"
    config.build.text.tokenizer = config.model.get_oneway_ref("path")
    return base.make_tiny(config) if options.tiny else config
