"""Target-RPO of CodeQwen1.5-7B in the paper's settings (arXiv 2503.02783, App. A.3).

    iterpref build --config=configs/target_rpo_codeqwen1_5_7b.py --input=pairs.jsonl --out=DATA
    iterpref train --config=configs/target_rpo_codeqwen1_5_7b.py --config.data.path=DATA --workdir=RUN

Plan (`iterpref plan --config=... --topology=v5p:2x2x2`, 8 chips; pairs of 300 + 724 tokens): 16.9 of 95.73 GiB a chip,
8 x 8 rows an update of 128 pairs; at assumed speeds 3.7 s an update and 6.4 chip hours an epoch of 100,000 pairs.
Expected: no result of ours yet.

A base model: prompts are raw text, whatever template its tokenizer carries.
"""

from configs import base

# Its config.json, as far as it shapes the model: `iterpref plan` needs no file of it. Training reads the model's own.
SHAPE = dict(
    model_type="qwen2", vocab_size=92416, hidden_size=4096, intermediate_size=13440, num_hidden_layers=32,
    num_attention_heads=32, num_key_value_heads=4, rope_theta=1e6, rms_norm_eps=1e-5, tie_word_embeddings=False,
)  # fmt: skip


def get_config(arg: str = ""):
    options = base.parse_arg(arg, tiny=False)
    config = base.get_config()
    config.model.path = "Qwen/CodeQwen1.5-7B"
    config.build.text.tokenizer = config.model.get_oneway_ref("path")
    config.plan.model.update(SHAPE, _name_or_path=config.model.path)
    config.build.text.template = "raw"
    return base.make_tiny(config) if options.tiny else config
