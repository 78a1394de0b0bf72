"""Target-RPO of Gemma 3 1B.

    iterpref build --config=configs/target_rpo_gemma3_1b.py --input=pairs.jsonl --out=DATA
    iterpref train --config=configs/target_rpo_gemma3_1b.py --config.data.path=DATA --workdir=RUN

Plan (`iterpref plan --config=... --topology=v6e:1x1`, 1 chip; pairs of 300 + 724 tokens): 18.3 of 31.24 GiB a chip, 64
x 2 rows an update of 128 pairs; at assumed speeds 2.9 s an update and 0.6 chip hours an epoch of 100,000 pairs.
Expected: no result of ours yet.
"""

from configs import base

# Its config.json, as far as it shapes the model: `iterpref plan` needs no file of it. Training reads the model's own.
SHAPE = dict(
    model_type="gemma3_text", vocab_size=262144, hidden_size=1152, intermediate_size=6912, num_hidden_layers=26,
    num_attention_heads=4, num_key_value_heads=1, head_dim=256, query_pre_attn_scalar=256, sliding_window=512,
    sliding_window_pattern=6, rope_theta=1e6, rope_local_base_freq=1e4, rms_norm_eps=1e-6,
    hidden_activation="gelu_pytorch_tanh", tie_word_embeddings=True,
)  # fmt: skip


def get_config(arg: str = ""):
    options = base.parse_arg(arg, tiny=False)
    config = base.get_config()
    config.model.path = "google/gemma-3-1b-it"
    config.build.text.tokenizer = config.model.get_oneway_ref("path")
    config.plan.model.update(SHAPE, _name_or_path=config.model.path)
    config.rows.tokens = 2048
    config.rows.rows_per_microbatch = 2
    return base.make_tiny(config) if options.tiny else config
