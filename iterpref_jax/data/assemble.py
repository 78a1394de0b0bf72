"""The chunks of a build become a dataset folder: shards, indexes, tfds metadata, tokenizer, `iterpref.json`."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath

import iterpref_jax
from iterpref_jax.data import build_report, chunks, schema, tfrecord

COPY_BYTES = 1 << 22
DESCRIPTION = "Preference pairs of programs with the tokens in which they differ (iterpref_jax)."


def assemble(tools: chunks.Tools, folder: pathlib.Path, count: int, about: dict[str, Any]) -> dict[str, Any]:
    """Writes the dataset of `count` whole chunks into the new folder `folder` and returns its metadata.

    `about` is what the caller knows: `plan`, `inputs` and `dropped` by the steps before the chunks.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    markers = [chunks.whole_marker(tools.folder, number) for number in range(count)]
    names = [split for split in chunks.SPLITS if any(split in marker["splits"] for marker in markers)]
    splits = {split: _write_split(tools, folder, split, markers) for split in names}
    metadata = _metadata(tools, splits, about) | {"eval_pairs_with_train_prompt": _shared_prompts(markers)}
    tools.encoder.tokenizer.save_pretrained(folder / "tokenizer")
    _write_tfds_metadata(folder, splits)
    build_report.write(folder, metadata, {name: schema.load_index(folder / schema.index_name(name)) for name in names})
    # Last: a folder with this file is a whole dataset.
    _write_json(folder / schema.METADATA_FILE, metadata)
    return metadata


def _shared_prompts(markers: list[dict[str, Any]]) -> int:
    """Counts the held-out pairs whose prompt train has too, under another task."""
    parts = {split: [m["splits"][split]["prompts"] for m in markers if split in m["splits"]] for split in chunks.SPLITS}
    seen = {key for prompts in parts["train"] for key in prompts}
    return sum(pairs for prompts in parts["eval"] for key, pairs in prompts.items() if key in seen)


def _metadata(tools: chunks.Tools, splits: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
    settings = dataclasses.asdict(tools.settings)
    del settings["workers"]
    return {
        "schema_version": schema.SCHEMA_VERSION,
        "iterpref_jax": iterpref_jax.__version__,
        "focus": tools.settings.focus.mode,
        "text": dataclasses.asdict(tools.encoder.rules),
        "settings": settings,
        **about,
        "splits": splits,
    }


def _write_split(
    tools: chunks.Tools, folder: pathlib.Path, split: str, markers: list[dict[str, Any]]
) -> dict[str, Any]:
    numbers = [number for number, marker in enumerate(markers) if split in marker["splits"]]
    index = _joined(chunks.load_indexes(tools.folder, numbers, split), tools.settings)
    sizes = np.bincount(index.shard, weights=index.length + tfrecord.FRAME_BYTES).astype(np.int64)
    stream = _blocks([chunks.records_path(tools.folder, n, split) for n in numbers])
    _write_shards([folder / schema.shard_name(split, i, len(sizes)) for i in range(len(sizes))], sizes, stream)
    index.save(folder / schema.index_name(split))
    return {
        "pairs": len(index),
        "tasks": len({task for n in numbers for task in markers[n]["splits"][split]["tasks"]}),
        "shards": len(sizes),
        "shard_pairs": np.bincount(index.shard).tolist(),
        "bytes": int(sizes.sum()),
        "fingerprint": index.fingerprint(),
    }


def _joined(parts: list[schema.Index], settings: chunks.BuildSettings) -> schema.Index:
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in schema.COLUMNS}
    ends = np.cumsum(columns["length"] + tfrecord.FRAME_BYTES)
    starts = ends - columns["length"] - tfrecord.FRAME_BYTES
    shard = np.arange(len(starts)) // settings.shard_pairs
    columns["shard"] = shard.astype(schema.DTYPES["shard"])
    columns["offset"] = starts - starts[shard * settings.shard_pairs]
    return schema.Index(**columns)


def _blocks(paths: list[pathlib.Path]) -> Iterator[bytes]:
    for path in paths:
        with path.open("rb") as source:
            while block := source.read(COPY_BYTES):
                yield block


def _write_shards(paths: list[pathlib.Path], sizes: np.ndarray, stream: Iterator[bytes]) -> None:
    """Cuts the stream of framed records into files of the given sizes."""
    block = memoryview(b"")
    for path, size in zip(paths, sizes.tolist(), strict=True):
        with path.open("wb") as out:
            while size:
                block = block or memoryview(next(stream))
                taken = out.write(block[:size])
                block, size = block[taken:], size - taken


def _write_tfds_metadata(folder: pathlib.Path, splits: dict[str, Any]) -> None:
    import tensorflow_datasets as tfds

    template = tfds.core.ShardedFileTemplate(
        data_dir=epath.Path(folder), dataset_name=schema.DATASET_NAME, filetype_suffix="tfrecord"
    )
    infos = [
        tfds.core.SplitInfo(
            name=name,
            shard_lengths=about["shard_pairs"],
            num_bytes=about["bytes"],
            filename_template=template.replace(split=name),
        )
        for name, about in splits.items()
    ]
    tfds.folder_dataset.write_metadata(
        data_dir=folder, features=schema.features(), split_infos=infos, check_data=False, description=DESCRIPTION
    )


def _write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
