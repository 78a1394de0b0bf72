"""What the benchmarks share: model shapes, and child processes whose time and memory are their own.

Imports nothing but the standard library: a competitor's environment, which lacks our packages, reads it too, and the
parent of a measurement must hold neither a model nor an accelerator.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
VOCAB = 151_936  # Qwen2's

# Qwen2 shapes by their number of parameters, embeddings (tied) included; 0.5b and 1.5b are Qwen2.5's own.
_SIZES = {
    #        width   MLP layers heads KV
    "tiny": (64, 160, 2, 4, 2),
    "20m": (128, 384, 4, 4, 2),
    "98m": (512, 1216, 8, 8, 2),
    "0.5b": (896, 4864, 24, 14, 2),
    "1.5b": (1536, 8960, 28, 12, 2),
}
MODELS = tuple(_SIZES)


def model_shape(name: str, vocab: int = VOCAB) -> dict[str, Any]:
    """Returns the config.json of a model of `MODELS`."""
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    shape = dict(zip(names, _SIZES[name], strict=True))
    fixed = dict(rms_norm_eps=1e-6, rope_theta=1e6, tie_word_embeddings=True, vocab_size=vocab)
    return {"model_type": "qwen2", **shape, **fixed}


def add_flags(arguments: argparse.ArgumentParser) -> None:
    """Adds the flags of model, device and step that `run_overrides` and `run_child` read."""
    arguments.add_argument("--model", choices=MODELS, default="20m", help="a Qwen2 shape, by its parameters")
    arguments.add_argument("--vocab", type=int, default=VOCAB, help="the model's vocabulary; 0: the tokenizer's")
    arguments.add_argument("--device", choices=("cpu", "gpu"), default="cpu", help="cpu: float32; gpu: bfloat16")
    arguments.add_argument("--param-dtype", choices=("float32", "bfloat16"), default="float32")
    arguments.add_argument("--tokens", type=int, default=1536, help="of a row; raised to the longest pair of a layout")
    arguments.add_argument("--pairs-per-step", type=int, default=4)
    arguments.add_argument("--timeout", type=float, default=3600.0, help="seconds for one run of one variant")


def compute_dtype(options: argparse.Namespace) -> str:
    """Returns the precision of the device."""
    return "float32" if options.device == "cpu" else "bfloat16"


def run_overrides(options: argparse.Namespace, data: Path, steps: int, variant: tuple[str, str, bool]) -> list[str]:
    """Returns configs/base.py's overrides for `steps` updates of our side on a dataset; recipe, layout, truncation."""
    recipe, layout, truncate = variant
    values = {
        "seed": options.seed,
        "data.path": data,
        "model.param_dtype": options.param_dtype,
        "model.compute.compute_dtype": compute_dtype(options),
        "model.compute.remat": "none" if options.device == "cpu" else "save_products",
        "rows.layout": layout,
        "rows.truncate": truncate,
        "rows.tokens": options.tokens,
        "rows.rows_per_microbatch": 1,
        "objective.recipe": recipe,
        "objective.alpha": 0.0,
        "optimizer.schedule": "constant",
        "optimizer.warmup": 0.0,
        "train.global_batch": options.pairs_per_step,
        "train.epochs": 0.0,
        "train.steps": steps,
    }
    return [f"{name}={value}" for name, value in values.items()]


def random_weights(options: argparse.Namespace) -> list[str]:
    """Returns the overrides for a model of random weights."""
    return [f"model.init.{name}={value}" for name, value in model_shape(options.model, options.vocab).items()]


def run_child(python: str, script: str, spec: dict[str, Any], *, timeout: float, cpu: bool) -> dict[str, Any]:
    """Runs `benchmarks/SCRIPT` in a process of its own and returns what it found, or {"error": its last words}.

    With `cpu` neither JAX nor torch sees an accelerator, else both see the first one.
    """
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    hidden = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""} if cpu else {"CUDA_VISIBLE_DEVICES": first}
    load = round(os.getloadavg()[0], 2)
    with tempfile.TemporaryDirectory() as folder:
        said, given, found = (Path(folder) / name for name in ("said", "spec.json", "found.json"))
        given.write_text(json.dumps(spec))
        command = [python, str(ROOT / "benchmarks" / script), str(given), str(found)]
        with said.open("w") as out:
            try:
                subprocess.run(
                    command, stdout=out, stderr=out, timeout=timeout, check=True, env=os.environ | hidden, cwd=ROOT
                )
                return json.loads(found.read_text()) | {"load_average": load}
            except subprocess.TimeoutExpired:
                how = f"stopped after {timeout:.0f} s"
            except subprocess.CalledProcessError as error:
                how = f"exit status {error.returncode}"
        return {"error": f"{how}: {said.read_text()[-2000:]}", "load_average": load}


def answer(measure: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """The main function of a child: answers the spec that `run_child` gave it.

    `start_host_bytes` is what the process held before it did anything: its imports.
    """
    given, found = map(Path, sys.argv[1:])
    start = {"start_host_bytes": peak_host_bytes()}
    found.write_text(json.dumps(start | measure(json.loads(given.read_text()))))


def peak_host_bytes() -> int:
    """Returns the peak resident memory of this process.

    Not `ru_maxrss`: that one starts from the peak of the process that forked this one.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return 1024 * int(peak)


def machine() -> dict[str, Any]:
    """Returns what a line says of where and when it was measured."""
    return {"cores": cores(), "machine": platform.machine(), "date": time.strftime("%Y-%m-%d")}


def cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def emit(**line: Any) -> None:
    """Prints one JSON line."""
    print(json.dumps(line), flush=True)


def note(text: str) -> None:
    """Tells a person how far it is."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
