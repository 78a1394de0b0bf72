"""Where shown pairs come from: a dataset folder that `build` made, or a file of histories or pairs."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np
from etils import epath

from iterpref_jax.codeflow import filters, records
from iterpref_jax.codeflow import focus as focusing
from iterpref_jax.codeflow import pairs as pairing
from iterpref_jax.data import chunks, layout, schema, text_rules, tokenize
from iterpref_jax.errors import UserError, did_you_mean
from iterpref_jax.objectives.weights import find_recipe
from iterpref_jax.view import model as view
from iterpref_jax.view import tree as view_tree

Item = TypeVar("Item")

DEFAULT_SPLIT = "train"
NAMED = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted:
    """What to show: the first `limit` pairs whose id contains `pair`, weighted by `recipe` ("": one that fits).

    `split` is for datasets only ("": train); `nll_norm` is the objective's.
    """

    limit: int
    pair: str
    split: str
    recipe: str
    nll_norm: str

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise UserError(f"--limit must be 1 or more, not {self.limit}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shown:
    """Pairs to show, and what is said above them; `summary` covers `total` pairs (a file: the shown ones) or is None.

    `total` is how many pairs there are, shown or not.
    """

    source: str
    about: str
    recipe: str
    total: int
    summary: view_tree.Summary | None
    pairs: tuple[view.PairView, ...]


def read(path: str, wanted: Wanted, build: chunks.BuildSettings | None) -> Shown:
    """Returns the pairs of a dataset folder, or of a file with `build` settings (pairs, focus, filters, text).

    Raises UserError for a path that is neither, options that do not belong to it, or no pair of the wanted name.
    """
    found = epath.Path(path)
    if not found.exists():
        raise UserError(f"{path}: no such file or folder; name a dataset of `iterpref build`, or a file of pairs")
    if not found.is_dir():
        return _read_file(path, wanted, build)
    if build is not None:
        raise UserError(f"--config: {path} is a folder, and a dataset holds its own settings; leave --config out")
    return _read_dataset(schema.open_dataset(path), wanted)


def _read_dataset(dataset: schema.Dataset, wanted: Wanted) -> Shown:
    name, mode = wanted.split or DEFAULT_SPLIT, dataset.metadata["focus"]
    split = dataset.split(name)
    rules = text_rules.rules_from_json(dataset.metadata["text"])
    tokenizer = text_rules.load_tokenizer(dataset.tokenizer_path)
    text_rules.check_tokenizer(tokenizer, rules, dataset.tokenizer_path)
    words = view.vocabulary(tokenizer, rules)
    recipe, weights = _weights(wanted, mode, dataset.metadata["settings"]["seed"])
    examples = enumerate(split[record] for record in range(len(split)))
    named = ((example.pair_id, (record, example)) for record, example in examples)
    chosen = _pick(named, wanted, f"{dataset.path}, split {name}")
    groups = split.index.group

    def group(record: int) -> dict[int, schema.Example]:
        return {int(i): split[int(i)] for i in np.flatnonzero(groups == groups[record])}

    return Shown(
        source=str(dataset.path),
        about=f"split {name}, focus by {mode}",
        recipe=recipe,
        total=len(split),
        summary=view_tree.summary(split.index, weights),
        pairs=tuple(view.of_record(example, record, words, weights, group=group(record)) for record, example in chosen),
    )


def _read_file(path: str, wanted: Wanted, build: chunks.BuildSettings | None) -> Shown:
    if wanted.split:
        raise UserError(f"--split={wanted.split}: {path} is a file and has no splits; `iterpref build` makes them")
    kind = records.file_kind(path)
    if build is None:
        raise UserError(
            f"{path} holds {kind}: their focus needs the settings of a config; add --config=FILE, such as "
            "--config=configs/base.py, and --config.build.text.tokenizer=FOLDER to see tokens and trees as well"
        )
    recipe, weights = _weights(wanted, build.focus.mode, build.seed)
    encoder = _encoder(build)
    items = list(chunks.mark_repeats(_pairs(path, kind, build), encoder))
    named = ((item.pair.pair_id, (record, item)) for record, item in enumerate(items))
    chosen = _pick(named, wanted, path)
    views = tuple(_views(chosen, build, weights, encoder))
    return Shown(
        source=path,
        about=f"{kind}, focus by {build.focus.mode}",
        recipe=recipe,
        total=len(items),
        summary=_summary(views, weights),
        pairs=views,
    )


def _weights(wanted: Wanted, mode: str, seed: int) -> tuple[str, layout.Weighting]:
    name = view.choose_recipe(wanted.recipe, mode)
    return name, layout.Weighting(recipe=find_recipe(name), seed=seed, nll_norm=wanted.nll_norm)


def _pick(named: Iterable[tuple[str, Item]], wanted: Wanted, where: str) -> list[Item]:
    """Returns the first items whose name contains the wanted one; raises UserError, with close names, if none does."""
    found, others = [], []
    for name, item in named:
        if wanted.pair in name:
            found.append(item)
        else:
            others.append(name)
        if len(found) == wanted.limit:
            break
    if not found:
        some = f"; there are {', '.join(others[:NAMED])}{', ...' if len(others) > NAMED else ''}"
        # Ids are long ("source/task/3#v1"): what was meant is close to one part of them.
        hint = (
            did_you_mean(wanted.pair, [piece for name in others for piece in (name, *re.split("[/#]", name))]) or some
        )
        raise UserError(f"--pair={wanted.pair}: no pair id of {where} contains it ({len(others)} pairs){hint}")
    return found


def _pairs(path: str, kind: str, build: chunks.BuildSettings) -> Iterator[records.Pair]:
    if kind == "pairs":
        return records.read_pairs(path)
    return pairing.make_pairs(records.read_trajectories(path), build.pairs, collections.Counter())


def _views(
    chosen: list[tuple[int, chunks.Item]],
    build: chunks.BuildSettings,
    weights: layout.Weighting,
    encoder: tokenize.Encoder | None,
) -> Iterator[view.PairView]:
    words = None if encoder is None else view.vocabulary(encoder.tokenizer, encoder.rules)
    benchmarks = filters.load_benchmarks(build.filters)
    for record, item in chosen:
        pair, (focus, rule) = item.pair, chunks.focus_and_rule(item, build, benchmarks, encoder)
        found = None if encoder is None else encoder.try_pairs([pair], [focus])[0]
        rule = rule or (chunks.token_rule(found, build) if found else None)
        if isinstance(found, schema.Example) and encoder is not None and words is not None:
            spans = _shifted(focus, pair, encoder.rules)
            yield view.of_record(found, record, words, weights, spans=spans, dropped=rule)
        else:
            yield view.of_text(pair, focus, dropped=rule)


def _encoder(build: chunks.BuildSettings) -> tokenize.Encoder | None:
    if not build.text.tokenizer:
        return None
    tokenizer = text_rules.load_tokenizer(build.text.tokenizer)
    return tokenize.Encoder(tokenizer, text_rules.make_rules(build.text, tokenizer))


def _shifted(
    focus: focusing.Focus, pair: records.Pair, rules: text_rules.TextRules
) -> tuple[list[focusing.Span], list[focusing.Span]]:
    """Moves the spans behind the fence that the encoder puts in front of a program."""
    shift = len(rules.fence_open) if pair.form == "code" else 0
    chosen, rejected = ([(a + shift, b + shift) for a, b in spans] for spans in (focus.chosen, focus.rejected))
    return chosen, rejected


def _summary(views: tuple[view.PairView, ...], weights: layout.Weighting) -> view_tree.Summary | None:
    place = dict.fromkeys(("shard", "offset", "length", "crc"), 0)
    rows = [place | schema.counts(pair.tokens.example) for pair in views if pair.tokens]
    return view_tree.summary(schema.make_index(rows), weights) if rows else None
