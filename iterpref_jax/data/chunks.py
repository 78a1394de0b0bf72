"""One chunk of a build: pairs -> focus -> filters -> tokens -> framed records and index, kept on disk.

A chunk's files are `NNNNN-SPLIT.records`, `NNNNN-SPLIT.npz` and `NNNNN.json`. The last one is written last and in one
step, so a chunk is whole or does not count, whenever the process dies.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import itertools
import json
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from iterpref_jax.atomic import replace_text
from iterpref_jax.codeflow import draws, filters, records
from iterpref_jax.codeflow import focus as focusing
from iterpref_jax.codeflow import pairs as pairing
from iterpref_jax.data import schema, text_rules, tfrecord, tokenize
from iterpref_jax.errors import UserError

CHUNK_PAIRS = 256
SPLITS = ("train", "eval")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildSettings:
    """What becomes of histories or pairs.

    `max_tokens` limits prompt + longer completion, `max_prompt_tokens` the prompt: longer pairs are dropped, never cut.
    `eval_fraction` of the tasks (drawn by `seed`) form the split "eval"; `shard_pairs` is the size of a shard.
    `workers` processes share the work (0 = this one does it); they do not change the result.
    """

    pairs: pairing.PairSettings
    focus: focusing.FocusSettings
    filters: filters.FilterSettings
    text: text_rules.TextSettings
    max_prompt_tokens: int
    max_tokens: int
    eval_fraction: float
    seed: int
    shard_pairs: int
    workers: int

    def __post_init__(self) -> None:
        if not 0 <= self.eval_fraction < 1:
            raise UserError(f"eval_fraction must be at least 0 and below 1, not {self.eval_fraction}")
        for name, least in (("max_prompt_tokens", 1), ("max_tokens", 1), ("shard_pairs", 1), ("workers", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name} must be {least} or more, not {getattr(self, name)}")


class Item(NamedTuple):
    """A normalised pair, and whether an equal one came before it in the whole input."""

    pair: records.Pair
    is_repeat: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tools:
    """What every chunk needs; goes to each worker once."""

    encoder: tokenize.Encoder
    settings: BuildSettings
    benchmarks: frozenset[bytes]
    folder: pathlib.Path


def make_chunk(tools: Tools, number: int, items: Sequence[Item]) -> int:
    """Writes the files of chunk `number` and returns how many pairs it took in."""
    dropped: collections.Counter[str] = collections.Counter()
    kept: dict[str, list[schema.Example]] = collections.defaultdict(list)
    garbled: list[tokenize.Garbled] = []
    for example in _examples(tools, items, dropped, garbled):
        kept[split_of(example.task, tools.settings)].append(example)
    about = {split: _write_split(tools.folder, number, split, kept[split]) for split in SPLITS if kept[split]}
    example = {"not_reversible": garbled[0].where} if garbled else {}
    content = {"pairs": len(items), "dropped": dict(dropped), "examples": example, "splits": about}
    _write_marker(tools.folder, number, content)
    return len(items)


def split_of(task: str, settings: BuildSettings) -> str:
    """Returns the split that all pairs of a task belong to."""
    return "eval" if draws.draw(settings.seed, "split", task) < settings.eval_fraction * 2**64 else "train"


def marker(folder: pathlib.Path, number: int) -> dict[str, Any] | None:
    """Returns what chunk `number` holds, or None if it is not whole."""
    try:
        about = json.loads((folder / f"{number:05d}.json").read_text())
        sizes = {split: records_path(folder, number, split).stat().st_size for split in about["splits"]}
    except (FileNotFoundError, ValueError):
        return None
    return about if all(about["splits"][split]["bytes"] == size for split, size in sizes.items()) else None


def whole_marker(folder: pathlib.Path, number: int) -> dict[str, Any]:
    """Returns what chunk `number` holds, which must be whole: all chunks are made by now."""
    about = marker(folder, number)
    if about is None:
        raise UserError(f"{folder}: chunk {number} was changed while the build ran; run the same command again")
    return about


def records_path(folder: pathlib.Path, number: int, split: str) -> pathlib.Path:
    """Returns the file of a chunk's framed records."""
    return folder / f"{number:05d}-{split}.records"


def index_path(folder: pathlib.Path, number: int, split: str) -> pathlib.Path:
    """Returns the file of a chunk's index, whose places count from the chunk's start."""
    return folder / f"{number:05d}-{split}.npz"


def load_indexes(folder: pathlib.Path, numbers: Sequence[int], split: str) -> list[schema.Index]:
    """Returns the indexes of chunks that follow each other: a group of pairs may go on from one to the next."""
    parts = [schema.load_index(index_path(folder, number, split)) for number in numbers]
    records = [records_path(folder, number, split) for number in numbers]
    for (before, before_path), (part, path) in itertools.pairwise(zip(parts, records, strict=True)):
        part.previous_len[0] = schema.previous_len(
            _record(part, path, 0), _record(before, before_path, len(before) - 1)
        )
    return parts


def _record(index: schema.Index, path: pathlib.Path, number: int) -> schema.Example:
    with contextlib.closing(tfrecord.RecordFile(path)) as file:
        return schema.read_record(file, index, number, record=number)


def _examples(
    tools: Tools, items: Sequence[Item], dropped: collections.Counter[str], garbled: list[tokenize.Garbled]
) -> Iterator[schema.Example]:
    kept = []
    for item in items:
        focus, rule = focus_and_rule(item, tools.settings, tools.benchmarks, tools.encoder)
        if rule:
            dropped[rule] += 1
        else:
            kept.append((item.pair, focus))
    for found in tools.encoder.try_pairs([pair for pair, _ in kept], [focus for _, focus in kept]):
        if rule := token_rule(found, tools.settings):
            dropped[rule] += 1
        if isinstance(found, tokenize.Garbled):
            garbled.append(found)
        elif not rule:
            yield found


def focus_and_rule(
    item: Item, settings: BuildSettings, benchmarks: frozenset[bytes], encoder: tokenize.Encoder | None
) -> tuple[focusing.Focus, str | None]:
    """Returns the focus of a pair, and the rule that drops it before it is tokens, if one does."""
    pair = item.pair
    longer = max(pair.chosen, pair.rejected, key=len)
    if encoder is not None and encoder.is_surely_longer(longer, settings.max_tokens):
        # The time that finding its focus takes is the square of its length.
        return focusing.Focus(chosen=(), rejected=()), "too_many_tokens"
    # Workers see a part of the pairs each; the set of those seen before holds this pair or not, as the whole would.
    seen = {filters.pair_key(pair)} if item.is_repeat else set()
    return filters.focus_and_rule(pair, settings.focus, settings.filters, benchmarks=benchmarks, seen=seen)


def token_rule(found: schema.Example | tokenize.Garbled, settings: BuildSettings) -> str | None:
    """Returns the rule on tokens that drops what the encoder made of a pair, if one does."""
    if isinstance(found, tokenize.Garbled):
        return "not_reversible"
    prompt = len(found.prompt_ids)
    if prompt > settings.max_prompt_tokens:
        return "prompt_too_long"
    longer = max(len(found.chosen_ids), len(found.rejected_ids))
    return "too_many_tokens" if prompt + longer > settings.max_tokens else None


def mark_repeats(pairs: Iterable[records.Pair], encoder: tokenize.Encoder | None) -> Iterator[Item]:
    """Yields the pairs in the form that the encoder reads, and which of them are repeats."""
    seen: set[bytes] = set()
    for pair in pairs:
        pair = pair if encoder is None else _normalized(pair, encoder)
        key = filters.pair_key(pair)
        yield Item(pair, key in seen)
        seen.add(key)


def _normalized(pair: records.Pair, encoder: tokenize.Encoder) -> records.Pair:
    chosen, rejected = encoder.normalize(pair.chosen), encoder.normalize(pair.rejected)
    unchanged = chosen is pair.chosen and rejected is pair.rejected
    return pair if unchanged else dataclasses.replace(pair, chosen=chosen, rejected=rejected)


def _write_split(folder: pathlib.Path, number: int, split: str, examples: list[schema.Example]) -> dict[str, Any]:
    payloads = [schema.serialize(example) for example in examples]
    offsets, lengths = tfrecord.write_records(records_path(folder, number, split), payloads)
    places = zip(offsets, lengths, payloads, strict=True)
    rows = [
        {"shard": 0, "offset": offset, "length": length, "crc": tfrecord.masked_crc(payload)}
        | schema.counts(example, before)
        for (offset, length, payload), example, before in zip(places, examples, [None, *examples][:-1], strict=True)
    ]
    schema.make_index(rows).save(index_path(folder, number, split))
    return {
        "pairs": len(examples),
        "bytes": records_path(folder, number, split).stat().st_size,
        "tasks": sorted({example.task for example in examples}),
        "prompts": dict(sorted(collections.Counter(map(_prompt_key, examples)).items())),
    }


def _prompt_key(example: schema.Example) -> str:
    return hashlib.blake2b(example.prompt_ids.tobytes(), digest_size=8).hexdigest()


def _write_marker(folder: pathlib.Path, number: int, about: dict[str, Any]) -> None:
    replace_text(folder / f"{number:05d}.json", json.dumps(about))
