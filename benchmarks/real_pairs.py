"""Real pairs for a benchmark: histories or pairs are built into a dataset once, and a part of one is a dataset too."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from measured import ROOT

from iterpref_jax import settings
from iterpref_jax.data import schema, tfrecord
from iterpref_jax.data.build import build
from iterpref_jax.data.schema import Dataset
from iterpref_jax.data.text_rules import load_tokenizer
from iterpref_jax.errors import UserError
from iterpref_jax.objectives.weights import mix64

BASE_CONFIG = str(ROOT / "configs" / "base.py")


# The flags that say how files are built.
_BUILT_WITH = {"tokenizer": "", "max_tokens": 1024, "choose": "random", "max_per_task": 0}


def add_flags(arguments: argparse.ArgumentParser) -> None:
    """Adds the flags that `open_pairs` reads."""
    arguments.add_argument("--data", nargs="+", required=True, help="histories or pairs (files), or one built dataset")
    arguments.add_argument("--tokenizer", default="", help="a folder or hub name; needed where --data are files")
    arguments.add_argument("--max-tokens", type=int, help="of prompt + longer completion; longer: dropped")
    arguments.add_argument("--choose", help="build.pairs.choose; all: every failing version")
    arguments.add_argument("--max-per-task", type=int, help="pairs of one task; 0: any number")
    arguments.set_defaults(**_BUILT_WITH)
    arguments.add_argument("--seed", type=int, default=0, help="of the pairs, their order and the weights")


def open_pairs(options: argparse.Namespace, overrides: Sequence[str], folder: Path) -> Dataset:
    """Opens the dataset of the flags, built into `folder` where they name files; `overrides` of `build` count last.

    Raises:
        UserError: files without a tokenizer, or a built dataset with words that say how to build it.
    """
    building = [word for word in overrides if word.startswith("build.")]
    if len(options.data) == 1 and Path(options.data[0]).is_dir():
        given = [
            f"--{name.replace('_', '-')}" for name, unused in _BUILT_WITH.items() if getattr(options, name) != unused
        ]
        if given or building:
            raise UserError(f"{', '.join([*given, *building])}: no effect, {options.data[0]} is a built dataset")
        return schema.open_dataset(options.data[0])
    if not options.tokenizer:
        raise UserError("--data names files: give the --tokenizer to build them with, or name a built dataset folder")
    values = {
        "text.tokenizer": options.tokenizer,
        "text.template": "chat" if load_tokenizer(options.tokenizer).chat_template else "raw",
        "max_tokens": options.max_tokens,
        "max_prompt_tokens": options.max_tokens,
        "pairs.choose": options.choose,
        "pairs.max_per_task": options.max_per_task,
        "eval_fraction": 0.0,
        "workers": 0,
    }
    words = [*(f"build.{name}={value}" for name, value in values.items()), f"seed={options.seed}", *building]
    build(options.data, folder, settings.read_section(settings.load_config(BASE_CONFIG, words), "build"))
    return schema.open_dataset(folder)


def draw(dataset: Dataset, pairs: int, seed: int, among: Sequence[int] | None = None) -> list[int]:
    """Returns the numbers of `pairs` training records: whole tasks, drawn by `seed`, the last one cut.

    Whole tasks, because a layout may share what several pairs of one task have in common. With `among` only these
    records are drawn.
    """
    split = dataset.split("train")
    among = range(len(split)) if among is None else among
    if pairs > len(among):
        raise UserError(f"{dataset.path}: {pairs} pairs are wanted, there are only {len(among)}; give more --data")
    by_task: dict[str, list[int]] = {}
    for record in among:
        by_task.setdefault(split[record].task, []).append(record)
    groups = list(by_task.values())
    order = np.argsort(mix64(np.arange(len(groups), dtype=np.uint64) + mix64(np.uint64(seed))), kind="stable")
    return [record for group in order for record in groups[group]][:pairs]


def subset(dataset: Dataset, records: Sequence[int], folder: Path) -> Path:
    """Writes a dataset of these training records, in this order, and returns its folder."""
    split = dataset.split("train")
    folder.mkdir(parents=True)
    shutil.copytree(dataset.tokenizer_path, folder / "tokenizer")
    shard = folder / schema.shard_name("train", 0, 1)
    tfrecord.write_records(shard, [schema.serialize(split[record]) for record in records])
    index = schema.index_shards([shard])
    index.save(folder / schema.index_name("train"))
    about = {"pairs": len(index), "shards": 1, "fingerprint": index.fingerprint()}
    (folder / schema.METADATA_FILE).write_text(json.dumps(dataset.metadata | {"splits": {"train": about}}))
    return folder
