"""Target-RPO of StarCoder2-15B in the paper's settings (arXiv 2503.02783, App. A.3).

    iterpref build --config=configs/target_rpo_starcoder2_15b.py --input=pairs.jsonl --out=DATA
    iterpref train --config=configs/target_rpo_starcoder2_15b.py --config.data.path=DATA --workdir=RUN

Hardware: 8 accelerators with 80 GB (float32 parameters, gradients and AdamW: 256 GB over the fsdp axis, plus
activations).
Expected: no result of ours yet.

A base model without a chat template: prompts are raw text.
"""

from configs import base


def get_config(arg: str = ""):
    options = base.parse_arg(arg, tiny=False)
    config = base.get_config()
    config.model.path = "bigcode/starcoder2-15b"
    config.build.text.tokenizer = config.model.get_oneway_ref("path")
    config.build.text.template = "raw"
    config.rows.tokens = 2048
    return base.make_tiny(config) if options.tiny else config
