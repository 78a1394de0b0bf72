"""Target-RPO of CodeGemma 7B.

    iterpref build --config=configs/target_rpo_codegemma_7b.py --input=pairs.jsonl --out=DATA
    iterpref train --config=configs/target_rpo_codegemma_7b.py --config.data.path=DATA --workdir=RUN

Plan (`iterpref plan --config=... --topology=v5p:2x2x2`, 8 chips; pairs of 300 + 724 tokens): 19.5 of 95.73 GiB a chip,
8 x 8 rows an update of 128 pairs; at assumed speeds 4.5 s an update and 7.7 chip hours an epoch of 100,000 pairs.
Expected: no result of ours yet.
"""

from configs import base

# Its config.json, as far as it shapes the model: `iterpref plan` needs no file of it. Training reads the model's own.
SHAPE = dict(
    model_type="gemma", vocab_size=256000, hidden_size=3072, intermediate_size=24576, num_hidden_layers=28,
    num_attention_heads=16, num_key_value_heads=16, head_dim=256, rope_theta=1e4, rms_norm_eps=1e-6,
    hidden_act="gelu_pytorch_tanh", tie_word_embeddings=True,
)  # fmt: skip


def get_config(arg: str = ""):
    options = base.parse_arg(arg, tiny=False)
    config = base.get_config()
    config.model.path = "google/codegemma-7b-it"
    config.build.text.tokenizer = config.model.get_oneway_ref("path")
    config.plan.model.update(SHAPE, _name_or_path=config.model.path)
    return base.make_tiny(config) if options.tiny else config
