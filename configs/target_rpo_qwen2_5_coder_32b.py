"""Target-RPO of Qwen2.5-Coder-32B-Instruct.

    iterpref build --config=configs/target_rpo_qwen2_5_coder_32b.py --input=pairs.jsonl --out=DATA
    iterpref train --config=configs/target_rpo_qwen2_5_coder_32b.py --config.data.path=DATA --workdir=RUN

Plan (`iterpref plan --config=... --topology=v5p:2x2x4`, 16 chips; pairs of 300 + 724 tokens): 37.5 of 95.73 GiB a chip,
4 x 16 rows an update of 128 pairs; at assumed speeds 8.2 s an update and 28.6 chip hours an epoch of 100,000 pairs.
Expected: no result of ours yet.
"""

from configs import base

# Its config.json, as far as it shapes the model: `iterpref plan` needs no file of it. Training reads the model's own.
SHAPE = dict(
    model_type="qwen2", vocab_size=152064, hidden_size=5120, intermediate_size=27648, num_hidden_layers=64,
    num_attention_heads=40, num_key_value_heads=8, rope_theta=1e6, rms_norm_eps=1e-6, tie_word_embeddings=False,
)  # fmt: skip


def get_config(arg: str = ""):
    options = base.parse_arg(arg, tiny=False)
    config = base.get_config()
    config.model.path = "Qwen/Qwen2.5-Coder-32B-Instruct"
    config.build.text.tokenizer = config.model.get_oneway_ref("path")
    config.plan.model.update(SHAPE, _name_or_path=config.model.path)
    config.optimizer.learning_rate = 5e-6
    return base.make_tiny(config) if options.tiny else config
