"""A dataset and a config for whole runs of the command line, tiny and without a hub."""

import json
import os
import subprocess
import sys
from pathlib import Path

import transformers

from iterpref_jax.codeflow import records
from iterpref_jax.data.build import build
from tests.data import tiny

ROOT = Path(__file__).parents[2]


def make_dataset(folder: Path, count: int = 24, **changes) -> Path:
    """Builds records of `count` made histories under `folder`; returns the dataset's path."""
    tokenizer = folder / "tokenizer"
    # The class that transformers picks beside a qwen2 config.json, so that exports read the same tokens.
    empty = transformers.Qwen2Tokenizer(eos_token="<|im_end|>", pad_token="<|endoftext|>")
    empty.train_new_from_iterator(tiny.CORPUS, 400, show_progress=False).save_pretrained(tokenizer)
    records.write_trajectories(folder / "trajectories.jsonl", tiny.trajectories(count))
    settings = tiny.build_settings(tokenizer, **{"eval_fraction": 0.3, "max_prompt_tokens": 300} | changes)
    build([folder / "trajectories.jsonl"], folder / "data", settings)
    return folder / "data"


def overrides(dataset: Path, **changes) -> list[str]:
    """The flags of a run of 6 updates of 8 pairs on one device, with checkpoints after 2, 4 and 6."""
    values = {
        "data.path": dataset,
        "rows.tokens": 512,
        "rows.rows_per_microbatch": 1,
        "train.global_batch": 8,
        "train.steps": 6,
        "train.checkpoint_every": 2,
        "reference.pairs_per_part": 8,
        "model.compute.logits_mb": 64,
    }
    return [f"--config.{name}={value}" for name, value in (values | changes).items()]


CONFIG = f"--config={ROOT / 'configs' / 'target_rpo_qwen2_5_coder_7b.py'}:tiny"


def run_cli(*words: str, cache: Path, code: str = "", check: bool = True) -> subprocess.CompletedProcess:
    """Runs `iterpref` in a process of its own; `code` runs in it first (to make it die at a chosen place)."""
    return subprocess.run(
        command(*words, code=code), env=environment(cache), capture_output=True, text=True, check=check, cwd=ROOT
    )


def command(*words: str, code: str = "") -> list[str]:
    script = f"{code}\nimport sys\nfrom iterpref_jax.__main__ import main\nsys.exit(main({list(map(str, words))!r}))"
    return [sys.executable, "-c", script]


def environment(cache: Path) -> dict[str, str]:
    """One device, and one compilation cache for all processes of a test."""
    flags = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    cached = {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags} | cached


def numbers(workdir: Path) -> list[dict]:
    """The lines of metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    clock = ("pairs_per_second", "rows_per_second", "tokens_per_second", "mfu")
    clock += ("step_s", "input_wait_s", "input_wait_fraction")
    return [
        {key: value for key, value in line.items() if key not in clock}
        for line in lines
        if line["split"] in ("train", "eval")
    ]
