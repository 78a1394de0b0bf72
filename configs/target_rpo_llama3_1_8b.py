"""Target-RPO of Llama-3.1-8B-Instruct.

    iterpref build --config=configs/target_rpo_llama3_1_8b.py --input=pairs.jsonl --out=DATA
    iterpref train --config=configs/target_rpo_llama3_1_8b.py --config.data.path=DATA --workdir=RUN

Plan (`iterpref plan --config=... --topology=v5p:2x2x2`, 8 chips; pairs of 300 + 724 tokens): 18.7 of 95.73 GiB a chip,
8 x 8 rows an update of 128 pairs; at assumed speeds 4.0 s an update and 6.9 chip hours an epoch of 100,000 pairs.
Expected: no result of ours yet.
"""

from configs import base

# Its config.json, as far as it shapes the model: `iterpref plan` needs no file of it. Training reads the model's own.
SHAPE = dict(
    model_type="llama", vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
    num_attention_heads=32, num_key_value_heads=8, rope_theta=5e5, rms_norm_eps=1e-5, tie_word_embeddings=False,
)  # fmt: skip


def get_config(arg: str = ""):
    options = base.parse_arg(arg, tiny=False)
    config = base.get_config()
    config.model.path = "meta-llama/Llama-3.1-8B-Instruct"
    config.build.text.tokenizer = config.model.get_oneway_ref("path")
    config.plan.model.update(SHAPE, _name_or_path=config.model.path)
    return base.make_tiny(config) if options.tiny else config
