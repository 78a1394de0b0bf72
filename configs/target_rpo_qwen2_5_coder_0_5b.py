"""Target-RPO of Qwen2.5-Coder-0.5B-Instruct.

    iterpref build --config=configs/target_rpo_qwen2_5_coder_0_5b.py --input=pairs.jsonl --out=DATA
    iterpref train --config=configs/target_rpo_qwen2_5_coder_0_5b.py --config.data.path=DATA --workdir=RUN

Plan (`iterpref plan --config=... --topology=v6e:1x1`, 1 chip; pairs of 300 + 724 tokens): 9.1 of 31.24 GiB a chip, 64 x
2 rows an update of 128 pairs; at assumed speeds 1.5 s an update and 0.3 chip hours an epoch of 100,000 pairs.
Expected: no result of ours yet.
"""

from configs import base

# Its config.json, as far as it shapes the model: `iterpref plan` needs no file of it. Training reads the model's own.
SHAPE = dict(
    model_type="qwen2", vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
    num_attention_heads=14, num_key_value_heads=2, rope_theta=1e6, rms_norm_eps=1e-6, tie_word_embeddings=True,
)  # fmt: skip


def get_config(arg: str = ""):
    options = base.parse_arg(arg, tiny=False)
    config = base.get_config()
    config.model.path = "Qwen/Qwen2.5-Coder-0.5B-Instruct"
    config.build.text.tokenizer = config.model.get_oneway_ref("path")
    config.plan.model.update(SHAPE, _name_or_path=config.model.path)
    config.rows.tokens = 2048
    config.rows.rows_per_microbatch = 2
    return base.make_tiny(config) if options.tiny else config
