"""Tokens a second of our sampler and of `transformers.generate`: one CPU, one model, one set of prompts, greedy.

    python benchmarks/decode_speed.py --hidden 512 --layers 8 --batch 1 4 16
    python benchmarks/decode_speed.py --model FOLDER

Needs torch (pip install '.[parity]'). Both compute in float32, decode a prompt of random tokens a row and
ignore the end of sequence. Prints one JSON line a batch size. The first run of each, which compiles or warms up, is
told apart; the others take turns, and their median counts.

Run it on an idle machine and look at `load_average`: PyTorch's threads wait for each other at every operation, so on
busy cores it loses far more than XLA does, and the ratio says nothing about either.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import tokenizers
import torch
import transformers

from iterpref_jax.decode.request import Request
from iterpref_jax.decode.sampler import Sampler, SamplerSettings
from iterpref_jax.models import hf_checkpoint
from iterpref_jax.models.decoder import Compute, Decoder


def flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="a Hugging Face folder; empty: random weights of the sizes below")
    sizes = dict(hidden=512, layers=8, heads=8, kv_heads=4, mlp=1536, vocab=32_000)
    for name, size in sizes.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=size)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--prompt", type=int, default=64, help="tokens a prompt")
    parser.add_argument("--new", type=int, default=128, help="tokens a completion")
    parser.add_argument("--chunk", type=int, default=16)
    parser.add_argument("--prefill-tokens", type=int, default=512)
    parser.add_argument("--threads", type=int, default=0, help="of PyTorch; 0 = its default")
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


def random_model(options: argparse.Namespace, folder: str) -> str:
    """Writes a checkpoint of random weights."""
    config = transformers.Qwen2Config(
        vocab_size=options.vocab,
        hidden_size=options.hidden,
        intermediate_size=options.mlp,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        num_key_value_heads=options.kv_heads,
        # Larger than the usual 0.02: greedy choices must not hang on rounding.
        initializer_range=0.1,
    )
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


def word_tokenizer(vocab: int):
    """A tokenizer with a word for every id, so that text is made of every token."""
    words = tokenizers.models.WordLevel({f"w{i}": i for i in range(vocab)}, unk_token="w0")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(words), eos_token="w0")


Run = Callable[[np.ndarray], list[list[int]]]  # prompts [batch, tokens] -> the tokens of their completions


def our_run(options: argparse.Namespace, model: tuple, batch: int) -> Run:
    """Returns a function that completes prompts with our sampler."""
    decoder, params = model
    shapes = dict(context=options.prompt + options.new, chunk=options.chunk, prefill_tokens=options.prefill_tokens)
    settings = SamplerSettings(slots=batch, **shapes)
    sampler = Sampler(decoder, params, word_tokenizer(decoder.config.vocab_size), settings)

    def run(prompts: np.ndarray) -> list[list[int]]:
        greedy = dict(max_tokens=options.new, temperature=0.0, stop_token_ids=())
        found = dict(sampler.generate(Request(prompt=prompt.tolist(), **greedy) for prompt in prompts))
        return [list(found[number].tokens) for number in range(batch)]

    return run


def their_run(options: argparse.Namespace, model: Any) -> Run:
    """Returns a function that completes prompts with `generate`."""
    counts = dict(max_new_tokens=options.new, do_sample=False, eos_token_id=None, pad_token_id=0)

    def run(prompts: np.ndarray) -> list[list[int]]:
        tokens = torch.tensor(prompts)
        with torch.inference_mode():
            output = model.generate(tokens, attention_mask=torch.ones_like(tokens), **counts)
        return output[:, options.prompt :].tolist()

    return run


def compare(options: argparse.Namespace, ours: tuple, theirs: Any, batch: int) -> dict[str, Any]:
    """Returns one line: times of both for `batch` prompts."""
    runs = {"ours": our_run(options, ours, batch), "transformers": their_run(options, theirs)}
    load, rng = round(os.getloadavg()[0], 2), np.random.default_rng(batch)
    times, equal = {name: [] for name in runs}, 0
    for _ in range(1 + options.repeats):
        # New prompts every time: our sampler would find old ones in its slots and compute nothing for them.
        prompts = rng.integers(1, ours[0].config.vocab_size, (batch, options.prompt))
        found = []
        for name, run in runs.items():
            start = time.perf_counter()
            found.append(run(prompts))
            times[name].append(time.perf_counter() - start)
        equal += sum(one == other for one, other in zip(*found, strict=True))
    first = {name: each.pop(0) for name, each in times.items()}
    speed = {name: batch * options.new / statistics.median(each) for name, each in times.items()}
    return {
        "batch": batch,
        "tokens_per_second": {name: round(value, 1) for name, value in speed.items()},
        "ratio": round(speed["ours"] / speed["transformers"], 2),
        "fastest_to_slowest_s": {name: [round(min(each), 3), round(max(each), 3)] for name, each in times.items()},
        "first_run_s": {name: round(value, 2) for name, value in first.items()},
        "equal_completions": f"{equal} of {batch * (1 + options.repeats)}",
        "load_average": load,
    }


def main() -> None:
    options = flags()
    jax.config.update("jax_platforms", "cpu")
    if options.threads:
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        path = options.model or random_model(options, folder)
        config, params = hf_checkpoint.load(path, "float32")
        theirs = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    theirs.generation_config.eos_token_id = None
    ours = Decoder(config, Compute(compute_dtype="float32", remat="none", attention="auto", logits_mb=0)), params
    about = {name: value for name, value in vars(options).items() if name != "batch"}
    versions = {"jax": jax.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    machine = {"cores": os.cpu_count(), "torch_threads": torch.get_num_threads(), "machine": platform.machine()}
    for batch in options.batch:
        print(json.dumps(compare(options, ours, theirs, batch) | about | versions | machine), flush=True)


if __name__ == "__main__":
    main()
