"""Target-RPO of Qwen3-8B.

    iterpref build --config=configs/target_rpo_qwen3_8b.py --input=pairs.jsonl --out=DATA
    iterpref train --config=configs/target_rpo_qwen3_8b.py --config.data.path=DATA --workdir=RUN

Plan (`iterpref plan --config=... --topology=v5p:2x2x2`, 8 chips; pairs of 300 + 724 tokens): 19.1 of 95.73 GiB a chip,
8 x 8 rows an update of 128 pairs; at assumed speeds 4.0 s an update and 7.0 chip hours an epoch of 100,000 pairs.
Expected: no result of ours yet.
"""

from configs import base

# Its config.json, as far as it shapes the model: `iterpref plan` needs no file of it. Training reads the model's own.
SHAPE = dict(
    model_type="qwen3", vocab_size=151936, hidden_size=4096, intermediate_size=12288, num_hidden_layers=36,
    num_attention_heads=32, num_key_value_heads=8, head_dim=128, rope_theta=1e6, rms_norm_eps=1e-6,
    tie_word_embeddings=False,
)  # fmt: skip


def get_config(arg: str = ""):
    options = base.parse_arg(arg, tiny=False)
    config = base.get_config()
    config.model.path = "Qwen/Qwen3-8B"
    config.build.text.tokenizer = config.model.get_oneway_ref("path")
    # Its records are answers alone; with thinking on, the prompt would ask for thoughts first.
    config.build.text.template_kwargs.update(enable_thinking=False)
    config.plan.model.update(SHAPE, _name_or_path=config.model.path)
    return base.make_tiny(config) if options.tiny else config
