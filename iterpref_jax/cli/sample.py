"""`iterpref sample`: completions of a file of prompts, from a model folder or a checkpoint of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from iterpref_jax import settings
from iterpref_jax.cli import model, options
from iterpref_jax.decode.job import JobSettings, read_prompts, sample_file
from iterpref_jax.errors import UserError
from iterpref_jax.progress import say
from iterpref_jax.train import compile_cache
from iterpref_jax.train.signals import stop_requested


def main(argv: Sequence[str]) -> int:
    chosen, overrides = options.parse(_arguments(), argv)
    job = JobSettings(
        n=chosen.n,
        seed=chosen.seed,
        max_tokens=chosen.max_tokens,
        temperature=chosen.temperature,
        top_p=chosen.top_p,
        top_k=chosen.top_k,
        stop=tuple(chosen.stop),
    )
    rows = read_prompts(chosen.input)
    config = model.load_config(chosen, overrides)
    shapes = settings.read_section(config, "decode")
    compile_cache.enable(settings.read_section(config, "compile"))
    opened = model.open_model(chosen, config, overrides)
    opened.warn_of_prompts(chat=chosen.chat, remedy="leave --chat out" if chosen.chat else "give --chat")
    if not chosen.chat:
        opened.warn_of_separator([row["prompt"] for row in rows])
    prompts = [_encode(opened.tokenizer, row["prompt"], chosen.chat) for row in rows]
    out = options.local_path(chosen.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with stop_requested("ending after the completions of this round") as should_stop:
        asked = {"model": opened.origin, "chat": chosen.chat}
        finished = sample_file(
            lambda: opened.sampler(shapes), shapes.context, rows, prompts, job, asked, out, should_stop
        )
    say(f"completions of {opened.origin}: {out}" + ("" if finished else " (not all: the same command goes on)"))
    return 0 if finished else 130


def _arguments():
    arguments = options.parser("sample", __doc__)
    options.add_config(arguments)
    model.add_model(arguments)
    arguments.add_argument("--input", required=True, metavar="FILE", help='JSONL of objects with a text "prompt"')
    arguments.add_argument("--out", required=True, metavar="FILE", help="the JSONL file to write; it is continued")
    arguments.add_argument("--chat", action="store_true", help="send each prompt as a user's message")
    arguments.add_argument("--n", type=int, default=1, help="completions a prompt (default: 1)")
    arguments.add_argument("--seed", type=int, default=0, help="of all completions (default: 0)")
    arguments.add_argument("--max_tokens", type=int, default=512, help="of a completion (default: 512)")
    arguments.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default: 0)")
    arguments.add_argument("--top_p", type=float, default=1.0, help="keep the likeliest of this mass (default: 1, all)")
    arguments.add_argument("--top_k", type=int, default=0, help="keep so many of the likeliest (default: 0, all)")
    arguments.add_argument("--stop", action="append", default=[], help="text that ends a completion; again for more")
    return arguments


def _encode(tokenizer: Any, prompt: str, chat: bool) -> Sequence[int]:
    if not chat:
        return tokenizer.encode(prompt)
    if not tokenizer.chat_template:
        raise UserError("--chat: the model's tokenizer has no chat template; leave the flag out")
    message = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    # The template writes the special tokens itself.
    return tokenizer.encode(text, add_special_tokens=False)
