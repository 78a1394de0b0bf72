"""Where shown pairs come from: a dataset folder that `build` made, or a file of histories or pairs."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

from etils import epath

from iterpref_jax.codeflow import filters, records
from iterpref_jax.codeflow import focus as focusing
from iterpref_jax.codeflow import pairs as pairing
from iterpref_jax.data import chunks, layout, schema, text_rules, tokenize, view, view_tree
from iterpref_jax.errors import UserError

DEFAULT_SPLIT = "train"
# Pairs of a file are encoded so many at a time: the tokenizer works on batches in parallel.
BATCH = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted:
    """What to show: the first `limit` pairs whose id contains `pair`; `split` "" is train (a dataset has splits)."""

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
    """Pairs to show, and what is said above them.

    `total` pairs were there to choose from; `sums` are columns of all of them per layout, where known without reading
    (a dataset's index knows, a file does not), and `targets` those of the log-probs computed.
    """

    source: str
    about: str
    recipe: str
    total: int
    pairs: tuple[view.PairView, ...]
    sums: dict[str, int]
    targets: int


class _Item(NamedTuple):
    pair: records.Pair
    focus: focusing.Focus
    rule: str | None


def read(path: str, wanted: Wanted, build: chunks.BuildSettings | None) -> Shown:
    """Returns the pairs of a dataset folder, or of a file with `build` settings (pairs, focus, filters, text).

    Raises UserError for a path that is neither, options that do not belong to it, or no pair of the wanted name.
    """
    found = epath.Path(path)
    if not found.exists():
        raise UserError(f"{path}: no such file or folder; name a dataset that `iterpref build` wrote, or a file of pairs")
    if not found.is_dir():
        return _read_file(path, wanted, build)
    if build is not None:
        raise UserError(f"--config: {path} is a folder, and a dataset holds its own settings; leave --config out")
    return _read_dataset(schema.open_dataset(path), wanted)


def _read_dataset(dataset: schema.Dataset, wanted: Wanted) -> Shown:
    rules = text_rules.rules_from_json(dataset.metadata["text"])
    tokenizer = text_rules.load_tokenizer(str(dataset.tokenizer_path))
    text_rules.check_tokenizer(tokenizer, rules, str(dataset.tokenizer_path))
    name = wanted.split or DEFAULT_SPLIT
    split = dataset.split(name)
    seed = dataset.metadata["settings"]["seed"]
    weights = view.weighting(wanted.recipe, dataset.metadata["focus"], seed=seed, nll_norm=wanted.nll_norm)
    words = view.vocabulary(tokenizer, rules)
    examples = ((record, split[record]) for record in range(len(split)))
    chosen = _pick(examples, wanted, str(dataset.path), lambda item: item[1].pair_id)
    costs = {layout_name: _costs(split.index, layout_name, weights) for layout_name in view_tree.NAMES}
    return Shown(
        source=str(dataset.path),
        about=f"split {name}, {dataset.metadata['focus']} focus",
        recipe=view.recipe_name(weights),
        total=len(split),
        pairs=tuple(view.of_record(example, record, words, weights) for record, example in chosen),
        sums={layout_name: int(cost.tokens.sum()) for layout_name, cost in costs.items()},
        targets=int(costs[view_tree.FOCAL].targets.sum()),
    )


def _read_file(path: str, wanted: Wanted, build: chunks.BuildSettings | None) -> Shown:
    if wanted.split:
        raise UserError(f"--split={wanted.split}: {path} is a file and has no splits; `iterpref build` makes them")
    kind = records.file_kind(path)
    if build is None:
        raise UserError(
            f"{path} holds {kind}: their focus needs the settings of a config; add --config=FILE, such as "
            "--config=configs/base.py (and --config.build.text.tokenizer=FOLDER to see tokens and trees)"
        )
    pairs = list(_pairs(path, kind, build))
    weights = view.weighting(wanted.recipe, build.focus.mode, seed=build.seed, nll_norm=wanted.nll_norm)
    chosen = _pick(enumerate(pairs), wanted, path, lambda item: item[1].pair_id)
    views = tuple(_views(chosen, build, weights))
    index = schema.make_index([_place(pair) for pair in views if pair.tokens])
    costs = {name: _costs(index, name, weights) for name in view_tree.NAMES} if len(index) else {}
    return Shown(
        source=path,
        about=f"{kind}, {build.focus.mode} focus",
        recipe=view.recipe_name(weights),
        total=len(pairs),
        pairs=views,
        sums={name: int(cost.tokens.sum()) for name, cost in costs.items()},
        targets=int(costs[view_tree.FOCAL].targets.sum()) if costs else 0,
    )
