"""CPU seconds that `iterpref build` needs for a pair, by stage: what one core builds a second.

    python benchmarks/build_speed.py --tokenizer FOLDER                                  # made pairs of 500 tokens
    python benchmarks/build_speed.py --tokenizer FOLDER --input histories.jsonl.gz --repeat 4

Everything runs in one process without threads, on the clock of that process's CPU time, so other work on the machine
disturbs little. A pair is read, checked, filtered, encoded and written; a pair's tokens are those of its prompt and of
both completions. `--repeat` takes a file's histories again under other names and with other numbers in their programs.
Prints one JSON line a repetition; `start` (the tokenizer's tables, imports) and `finish` (shards, report) do not count
as pairs' time, but are told.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import io
import json
import os
import platform
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tokenizers

from iterpref_jax import settings
from iterpref_jax.codeflow import filters, focus, records
from iterpref_jax.data import assemble, build, chunks, schema, text_rules, tfrecord, tokenize
from iterpref_jax.errors import UserError
from iterpref_jax.progress import say

# Stage -> the functions that are its own; time inside another stage's function counts there.
STAGES: dict[str, list[tuple[Any, str]]] = {
    "start": [
        (text_rules, "load_tokenizer"),
        (text_rules, "make_rules"),
        (tokenize.Encoder, "__init__"),
        (schema, "_messages"),  # the import of the records' generated code
    ],
    "read": [(build, "_count_pairs"), (build, "_make_plan")],
    "items": [(build, "_make_chunks")],
    "focus": [(focus, "find_focus")],
    "filters": [(filters, "focus_and_rule")],
    "tokens": [(tokenize.Encoder, "try_pairs")],
    "records": [(schema, "serialize"), (schema, "counts"), (tfrecord, "write_records")],
    "finish": [(assemble, "assemble")],
}
WORDS = "count total items values result index left right start node table limit text line word number".split()


def flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, help="a folder with tokenizer.json")
    parser.add_argument("--input", default="", help="a file of trajectories; empty: made pairs")
    parser.add_argument("--repeat", type=int, default=1, help="take the input's histories so often")
    parser.add_argument("--pairs", type=int, default=4096, help="how many pairs are made")
    parser.add_argument("--tokens", type=int, default=500, help="of a made pair: prompt and both completions")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="fields, such as build.pairs.choose=all")
    return parser.parse_args()


class Stopwatch:
    """Exclusive CPU time of nested stages."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys([*STAGES, "other"], 0.0)
        self._running, self._since = ["other"], time.process_time()

    def _switch(self) -> None:
        now = time.process_time()
        self.seconds[self._running[-1]] += now - self._since
        self._since = now

    def timed(self, stage: str, function: Callable) -> Callable:
        @functools.wraps(function)
        def run(*words, **options):
            self._switch()
            self._running.append(stage)
            try:
                return function(*words, **options)
            finally:
                self._switch()
                self._running.pop()

        return run


@contextlib.contextmanager
def watched() -> Iterator[Stopwatch]:
    """Puts a stopwatch around the stages' functions."""
    watch = Stopwatch()
    before = [(owner, name, getattr(owner, name)) for functions in STAGES.values() for owner, name in functions]
    for stage, functions in STAGES.items():
        for owner, name in functions:
            setattr(owner, name, watch.timed(stage, getattr(owner, name)))
    try:
        yield watch
    finally:
        for owner, name, function in before:
            setattr(owner, name, function)


def made_program(rng: random.Random, longest: int, measure: Callable[[str], int]) -> str:
    """Returns a function of random statements of at most `longest` tokens, and nearly as many."""
    name = rng.choice(WORDS)
    lines = [f"def {name}_{rng.randrange(1000)}({', '.join(rng.sample(WORDS, 3))}):\n", "    left = right + 1\n"]
    while measure("".join(lines)) <= longest:
        one, other, third = rng.sample(WORDS, 3)
        lines += [
            rng.choice(
                [
                    f"    {one} = {other} + {rng.randrange(100)}\n",
                    f"    if {one} > {other}[{third}]:\n        return {third} - {rng.randrange(100)}\n",
                    f"    for {one} in range(len({other})):\n        {third}.append({one} * {rng.randrange(100)})\n",
                    f"    print('{one} of {other}', {third})  # {other} comes first\n",
                ]
            )
        ]
    return "".join(lines[:-1])


def made_pairs(options: argparse.Namespace) -> Iterator[records.Pair]:
    """Yields pairs of `options.tokens` tokens, each with one line of the program changed."""
    backend = tokenizers.Tokenizer.from_file(str(Path(options.tokenizer) / "tokenizer.json"))
    rng = random.Random(0)

    def measure(text: str) -> int:
        return len(backend.encode(text, add_special_tokens=False).ids)

    for number in range(options.pairs):
        prompt = "Write the function that is described here. " + " ".join(rng.choices(WORDS, k=80)) + f". {number}"
        chosen = made_program(rng, (options.tokens - measure(prompt) - 30) // 2, measure)
        lines = chosen.splitlines(keepends=True)
        place = rng.choice([number for number, line in enumerate(lines) if " + " in line or " - " in line])
        # Every other change is one of an operator, which only the syntax tree's own comparison finds.
        fault = {" + ": " * ", " - ": " // "} if number % 2 else {" + ": " + other_", " - ": " - 1"}
        for right, wrong in fault.items():
            lines[place] = lines[place].replace(right, wrong)
        yield records.Pair(
            pair_id=f"made/{number}",
            task=f"made/{number}",
            prompt=prompt,
            chosen=chosen,
            rejected="".join(lines),
            form="code",
            meta={},
        )


def repeated(options: argparse.Namespace) -> Iterator[records.Trajectory]:
    """Yields the histories of the input `options.repeat` times, later ones with other numbers in them."""
    for again in range(options.repeat):
        for history in records.read_trajectories(options.input):
            versions = tuple(dataclasses.replace(v, code=_renumbered(v.code, again)) for v in history.versions)
            yield dataclasses.replace(
                history,
                task_id=f"{history.task_id}/{again}",
                instruction=f"{history.instruction}\n({again})",
                versions=versions,
                meta={**history.meta, "task": f"{history.task}/{again}"},
            )


def _renumbered(code: str, by: int) -> str:
    return re.sub(r"\b\d{1,5}\b", lambda number: str(int(number[0]) + by), code) if by else code


def measure(source: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Builds once and returns one line."""
    base = Path(__file__).parents[1] / "configs" / "base.py"
    overrides = [f"build.text.tokenizer={options.tokenizer}", "build.workers=0", *options.overrides]
    wanted: chunks.BuildSettings = settings.read_section(settings.load_config(str(base), overrides), "build")
    with tempfile.TemporaryDirectory() as folder, watched() as watch, contextlib.redirect_stderr(io.StringIO()):
        report = build.build([source], Path(folder) / "data", wanted)
    kept, dropped = sum(report.pairs.values()), sum(report.dropped.values())
    stages = {name: spent for name, spent in watch.seconds.items() if name not in ("start", "finish")}
    lengths = report.content["lengths"]
    return {
        "pairs": kept + dropped,
        "tokens_per_pair": round(sum(lengths[name]["mean"] for name in ("prompt", "chosen", "rejected"))),
        "pairs_per_second_per_core": round((kept + dropped) / sum(stages.values())),
        "microseconds_per_pair": {name: round(1e6 * spent / (kept + dropped), 1) for name, spent in stages.items()},
        "start_s": round(watch.seconds["start"], 2),
        "finish_s": round(watch.seconds["finish"], 2),
    }


def main() -> None:
    options = flags()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    about = {
        "input": Path(options.input).name or "made",
        "tokenizer": Path(options.tokenizer).name,
        "machine": platform.machine(),
        "python": platform.python_version(),
        "tokenizers": tokenizers.__version__,
    }
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "input.jsonl"
        if options.input:
            records.write_trajectories(source, repeated(options))
        else:
            records.write_pairs(source, made_pairs(options))
        say(f"input: {source.stat().st_size / 1e6:.1f} MB")
        for _ in range(options.runs):
            print(json.dumps(measure(source, options) | about), flush=True)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"build_speed: {error}")
