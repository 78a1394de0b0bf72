"""Target-RPO of Qwen3-Coder-30B-A3B-Instruct (a mixture of experts).

    iterpref build --config=configs/target_rpo_qwen3_coder_30b_a3b.py --input=pairs.jsonl --out=DATA
    iterpref train --config=configs/target_rpo_qwen3_coder_30b_a3b.py --config.data.path=DATA --workdir=RUN

Plan (`iterpref plan --config=... --topology=v5p:2x2x4`, 16 chips; pairs of 300 + 724 tokens): 35.1 of 95.73 GiB a chip,
3 x 16 rows an update of 128 pairs; at assumed speeds 2.9 s an update and 10.0 chip hours an epoch of 100,000 pairs.
Expected: no result of ours yet.

Experts drop no token; the router keeps its load-balancing loss with the weight of its pre-training.
"""

from configs import base

# Its config.json, as far as it shapes the model: `iterpref plan` needs no file of it. Training reads the model's own.
SHAPE = dict(
    model_type="qwen3_moe", vocab_size=151936, hidden_size=2048, intermediate_size=5472, moe_intermediate_size=768,
    num_hidden_layers=48, num_attention_heads=32, num_key_value_heads=4, head_dim=128, num_experts=128,
    num_experts_per_tok=8, norm_topk_prob=True, rope_theta=1e7, rms_norm_eps=1e-6, tie_word_embeddings=False,
)  # fmt: skip


def get_config(arg: str = ""):
    options = base.parse_arg(arg, tiny=False)
    config = base.get_config()
    config.model.path = "Qwen/Qwen3-Coder-30B-A3B-Instruct"
    config.build.text.tokenizer = config.model.get_oneway_ref("path")
    config.plan.model.update(SHAPE, _name_or_path=config.model.path)
    config.rows.rows_per_microbatch = 16
    # Shorter rows would make more microbatches, each of which gathers all experts: 3.8 s an update instead of 2.9.
    config.rows.lengths = 0
    config.optimizer.learning_rate = 5e-6
    config.objective.router_aux_loss_coef = 0.001
    return base.make_tiny(config) if options.tiny else config
