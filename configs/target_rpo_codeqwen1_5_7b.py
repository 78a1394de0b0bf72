"""Target-RPO of CodeQwen1.5-7B in the paper's settings (arXiv 2503.02783, App. A.3).

    iterpref build --config=configs/target_rpo_codeqwen1_5_7b.py --input=pairs.jsonl --out=DATA
    iterpref train --config=configs/target_rpo_codeqwen1_5_7b.py --config.data.path=DATA --workdir=RUN

Hardware: 8 accelerators with 80 GB (float32 parameters, gradients and AdamW: 117 GB over the fsdp axis, plus
activations).
Expected: no result of ours yet.

A base model: prompts are raw text, whatever template its tokenizer carries.
"""

from configs import base


def get_config(arg: str = ""):
    options = base.parse_arg(arg, tiny=False)
    config = base.get_config()
    config.model.path = "Qwen/CodeQwen1.5-7B"
    config.build.text.tokenizer = config.model.get_oneway_ref("path")
    config.build.text.template = "raw"
    return base.make_tiny(config) if options.tiny else config
