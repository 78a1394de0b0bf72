"""Sampling a file of prompts: results are written as they come, and a job that was stopped goes on where it was."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from iterpref_jax.atomic import whole_lines
from iterpref_jax.decode.request import Completion, Request, derived_seed
from iterpref_jax.decode.sampler import Sampler
from iterpref_jax.errors import UserError
from iterpref_jax.locks import held
from iterpref_jax.progress import progress

ABOUT = "sampling"


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobSettings:
    """How every prompt is sampled: `n` times, each with a seed of its own."""

    n: int
    seed: int
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    stop: tuple[str, ...]

    def __post_init__(self):
        if self.n < 1:
            raise UserError(f"--n must be at least 1, got {self.n}")
        if self.n > 1 and self.temperature == 0:
            raise UserError(f"--n={self.n} at temperature 0 would be {self.n} equal completions; raise --temperature")

    def request(self, prompt: Sequence[int], index: int, sample: int) -> Request:
        return Request(
            prompt=prompt,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            stop=self.stop,
            seed=derived_seed(self.seed, index * self.n + sample),
        )


def read_prompts(path: str) -> list[dict[str, Any]]:
    """Reads a JSONL file of objects with a text `prompt` (other fields are carried through).

    Raises:
        UserError: the file and the line that is not such an object.
    """
    rows = []
    # Not `splitlines`, which ends lines at U+2028 and the like as well: a JSON string may hold them.
    with Path(path).open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}, line {number}: no JSON ({error})") from error
            if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
                raise UserError(f'{path}, line {number}: wanted an object with a text "prompt"')
            rows.append(row)
    if not rows:
        raise UserError(f"{path} holds no prompts")
    return rows


def sample_file(
    opened: Callable[[], Sampler],
    context: int,
    rows: Sequence[dict[str, Any]],
    prompts: Sequence[Sequence[int]],
    settings: JobSettings,
    model: Mapping[str, Any],
    out: Path,
    should_stop: Callable[[], bool],
) -> bool:
    """Appends one line a completion to `out` as completions end; returns False if it was asked to stop before the end.

    A line is the prompt's row with `index`, `sample`, `completion`, `finish_reason`, `tokens` and `logprob` (the sum of
    the model's own log-probs). Completions that `out` holds are not sampled again: each depends on its seed alone.

    Args:
        opened: reads the weights, once it is known that there is something to sample and every prompt fits.
        context: the sampler's.
        model: what is asked, and how the prompts are sent: a file holds answers of one alone.

    Raises:
        UserError: `out` was sampled from other prompts, of another model or with other settings, another process writes
            it, or a prompt does not fit.
    """
    with held(out.with_name(f".{out.name}.lock"), f"{out}: another process writes it; give this one another --out"):
        about = json.loads(json.dumps({**model, **dataclasses.asdict(settings)}))
        done = _done(out, rows, about)
        wanted = [(i, n) for i in range(len(prompts)) for n in range(settings.n) if (i, n) not in done]
        requests = [settings.request(prompts[index], index, sample) for index, sample in wanted]
        for request in requests:
            request.check_fits(context)
        with progress("sampling", len(prompts) * settings.n, "completions", start=len(done)) as advance:
            found = opened().generate(requests) if requests else ()
            return _write(out, rows, wanted, found, about, advance, should_stop)


def _write(
    out: Path,
    rows: Sequence[dict[str, Any]],
    wanted: Sequence[tuple[int, int]],
    completions: Iterable[tuple[int, Completion]],
    about: dict[str, Any],
    advance: Callable[[int], None],
    should_stop: Callable[[], bool],
) -> bool:
    with out.open("a", encoding="utf-8") as file:
        for ended, (number, completion) in enumerate(completions, start=1):
            index, sample = wanted[number]
            found = {
                "index": index,
                "sample": sample,
                "completion": completion.text,
                "finish_reason": completion.finish_reason,
                "tokens": len(completion.tokens),
                "logprob": sum(completion.logprobs),
                ABOUT: about,
            }
            file.write(json.dumps({**rows[index], **found}, ensure_ascii=False) + "\n")
            file.flush()
            advance(1)
            if should_stop():
                return ended == len(wanted)
    return True


def _done(out: Path, rows: Sequence[dict[str, Any]], about: dict[str, Any]) -> set[tuple[int, int]]:
    found = set()
    for number, line in enumerate(whole_lines(out), start=1):
        row = json.loads(line)
        was, index, sample = row.get(ABOUT, {}), row.get("index"), row.get("sample")
        differing = [
            f"{name} was {was.get(name)!r}, is {value!r}" for name, value in about.items() if was.get(name) != value
        ]
        if not differing and (index >= len(rows) or row["prompt"] != rows[index]["prompt"]):
            differing = ["the prompt is another"]
        if differing:
            raise UserError(f"{out}, line {number}: {'; '.join(differing)}; write to another --out")
        found.add((index, sample))
    return found
