"""Target-RPO of StarCoder2-15B in the paper's settings (arXiv 2503.02783, App. A.3).

    iterpref build --config=configs/target_rpo_starcoder2_15b.py --input=pairs.jsonl --out=DATA
    iterpref train --config=configs/target_rpo_starcoder2_15b.py --config.data.path=DATA --workdir=RUN

Plan (`iterpref plan --config=... --topology=v5p:2x2x2`, 8 chips; pairs of 300 + 724 tokens): 35.5 of 95.73 GiB a chip,
16 x 8 rows an update of 128 pairs; at assumed speeds 10.7 s an update and 18.6 chip hours an epoch of 100,000 pairs.
Expected: no result of ours yet.

A base model without a chat template: prompts are raw text.
"""

from configs import base

# Its config.json, as far as it shapes the model: `iterpref plan` needs no file of it. Training reads the model's own.
SHAPE = dict(
    model_type="starcoder2", vocab_size=49152, hidden_size=6144, intermediate_size=24576, num_hidden_layers=40,
    num_attention_heads=48, num_key_value_heads=4, rope_theta=1e5, norm_epsilon=1e-5, sliding_window=4096,
    hidden_act="gelu_pytorch_tanh", use_bias=True, tie_word_embeddings=False, initializer_range=0.01275,
)  # fmt: skip


def get_config(arg: str = ""):
    options = base.parse_arg(arg, tiny=False)
    config = base.get_config()
    config.model.path = "bigcode/starcoder2-15b"
    config.build.text.tokenizer = config.model.get_oneway_ref("path")
    config.plan.model.update(SHAPE, _name_or_path=config.model.path)
    config.build.text.template = "raw"
    config.rows.tokens = 2048
    return base.make_tiny(config) if options.tiny else config
