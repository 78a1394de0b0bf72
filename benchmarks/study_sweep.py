"""The sweep of `study.py`: seven recipes on real debugging histories, from Gemma 3 270M.

Options: folder (of `study.py`), seeds, full.

Reduced: LoRA, ten updates of eight short pairs; full: every parameter, three epochs over all pairs.
Every variant makes the same updates of as many pairs; `sft` reads their right sides alone.
"""

from __future__ import annotations

import shlex

from configs import base, sweeps

RECIPES = ("sft", "dpo", "rpo", "target_dpo", "target_rpo", "symmetric_rpo")
# K+ is some 60 tokens and K- some 20, so beta is larger where their means are compared.
NORMED = ("objective.link.name=sigmoid_norm", "objective.link.beta=3.0")
COMMON = (
    "build.text.template=raw", "build.text.fence=none", "build.eval_fraction=0.25", "build.focus.empty=drop",
    "model.compute.remat=none", "rows.tokens=1024", "train.eval_every=0", "train.checkpoint_every=0",
    "train.keep_checkpoints=1", "optimizer.warmup=0.0",
)  # fmt: skip
REDUCED = (
    "build.max_tokens=256", "build.pairs.max_per_task=4", "rows.rows_per_microbatch=1", "model.lora.rank=16",
    "optimizer.learning_rate=5e-4", "train.global_batch=8", "train.epochs=0.0", "train.steps=10",
)  # fmt: skip
FULL = (
    "build.max_tokens=1024", "rows.rows_per_microbatch=4", "optimizer.learning_rate=1e-5", "train.global_batch=16",
    "train.epochs=3.0",
)  # fmt: skip
# Programs are short; an answer that runs into the limit fails in any case. On a CPU decoding is faster in float32.
REDUCED_ANSWERS = "decode.slots=32 decode.context=384 evaluate.max_new_tokens=112 model.compute.compute_dtype=float32"
FULL_ANSWERS = "decode.slots=128 decode.context=1024 evaluate.max_new_tokens=512"
# `study.py` writes tasks.jsonl: held-out tasks of the histories and tasks of MBPP.
EVALUATIONS = ("--benchmark=trajectories --prompt-style=raw --data={folder}/tasks.jsonl",)
MORE_EVALUATIONS = ("--benchmark=humaneval --prompt-style=base",)


def get_config(arg: str = ""):
    options = base.parse_arg(arg, folder="study", seeds=3, full=False)
    model = f"{options.folder}/gemma-3-270m.gguf"
    sweep = sweeps.make(
        f"seeds={options.seeds}",
        {name: sweeps.RECIPES[name] for name in RECIPES} | {"target_rpo_norm": NORMED},
        config="configs/base.py",
        overrides=(
            f"model.path={model}",
            f"build.text.tokenizer={model}",
            *COMMON,
            *(FULL if options.full else REDUCED),
        ),
    )
    evaluations = EVALUATIONS + (MORE_EVALUATIONS if options.full else ())
    answers = FULL_ANSWERS if options.full else REDUCED_ANSWERS
    flags = " ".join(f"--config.{word}" for word in answers.split())
    sweep.commands = tuple(
        f"eval --config={{config}} --workdir={{run}} --out={{out}} {flags} "
        + words.replace("{folder}", shlex.quote(options.folder))
        for words in evaluations
    )
    return sweep
