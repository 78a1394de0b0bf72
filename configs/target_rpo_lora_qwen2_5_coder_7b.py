"""Target-RPO of adapters on Qwen2.5-Coder-7B-Instruct: LoRA, or with `:nf4` QLoRA.

    iterpref build --config=configs/target_rpo_lora_qwen2_5_coder_7b.py --input=pairs.jsonl --out=DATA
    iterpref train --config=configs/target_rpo_lora_qwen2_5_coder_7b.py --config.data.path=DATA --workdir=RUN
    iterpref export --workdir=RUN --out=FOLDER              (merged; --adapters writes a PEFT folder instead)

Plan (`iterpref plan --config=... --topology=v6e:1x1`, 1 chip; pairs of 300 + 724 tokens): 17.0 of 31.24 GiB a chip, 128
x 1 rows an update of 128 pairs; at assumed speeds 10.6 s an update and 2.3 chip hours an epoch of 100,000 pairs.
Expected: no result of ours yet.
"""

from configs import base
from configs.target_rpo_qwen2_5_coder_7b import SHAPE


def get_config(arg: str = ""):
    options = base.parse_arg(arg, tiny=False, nf4=False)
    config = base.get_config()
    config.model.path = "Qwen/Qwen2.5-Coder-7B-Instruct"
    config.build.text.tokenizer = config.model.get_oneway_ref("path")
    config.plan.model.update(SHAPE, _name_or_path=config.model.path)
    config.model.param_dtype = "bfloat16"
    config.model.lora.rank = 32
    config.model.lora.alpha = 64.0
    config.model.lora.quantize = "nf4" if options.nf4 else ""
    config.optimizer.learning_rate = 1e-4
    config.rows.tokens = 2048
    return base.make_tiny(config) if options.tiny else config
