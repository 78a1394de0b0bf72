"""Target-RPO of Gemma 3 1B.

    iterpref build --config=configs/target_rpo_gemma3_1b.py --input=pairs.jsonl --out=DATA
    iterpref train --config=configs/target_rpo_gemma3_1b.py --config.data.path=DATA --workdir=RUN

Hardware: one accelerator with 40 GB (float32 parameters, gradients and AdamW: 16 GB, plus
activations).
Expected: no result of ours yet.
"""

from configs import base


def get_config(arg: str = ""):
    options = base.parse_arg(arg, tiny=False)
    config = base.get_config()
    config.model.path = "google/gemma-3-1b-it"
    config.build.text.tokenizer = config.model.get_oneway_ref("path")
    config.rows.tokens = 2048
    config.rows.rows_per_microbatch = 2
    return base.make_tiny(config) if options.tiny else config
