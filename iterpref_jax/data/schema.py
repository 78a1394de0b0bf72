"""One pair as a record, the index beside the records, and the folder that holds both.

Records are `tf.train.Example`s that tfds reads as well (`features`). The index has one row per record: where it lies
and the token counts from which a whole epoch is planned without reading a record.
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import hashlib
import io
import json
import shutil
import tempfile
import threading
import zipfile
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from iterpref_jax import errors
from iterpref_jax.data import tfrecord
from iterpref_jax.errors import UserError

DATASET_NAME = "codeflow"
SCHEMA_VERSION = 3
METADATA_FILE = "iterpref.json"
TEXT_FIELDS = ("pair_id", "task", "error_type")
ID_FIELDS = ("prompt_ids", "chosen_ids", "rejected_ids")
FOCUS_FIELDS = ("chosen_focus", "rejected_focus")
_IMPORTING = threading.Lock()


class Example(NamedTuple):
    """One pair. Completions hold the closing fence and the end-of-sequence ids; focus is 0/1 per completion token.

    `error_type` is how the rejected side failed ("AssertionError"); empty where nothing is known.
    """

    pair_id: str
    task: str
    prompt_ids: np.ndarray
    chosen_ids: np.ndarray
    rejected_ids: np.ndarray
    chosen_focus: np.ndarray
    rejected_focus: np.ndarray
    error_type: str = ""


def features():
    """Returns the record's `tfds.features.FeaturesDict` (int32 ids, uint8 focus)."""
    import tensorflow_datasets as tfds

    return tfds.features.FeaturesDict(
        {name: tfds.features.Text() for name in TEXT_FIELDS}
        | {name: tfds.features.Tensor(shape=(None,), dtype=np.int32) for name in ID_FIELDS}
        | {name: tfds.features.Tensor(shape=(None,), dtype=np.uint8) for name in FOCUS_FIELDS}
    )


@functools.cache
def _messages() -> Any:
    """Returns the generated code of `tf.train.Example`.

    One thread at a time: tensorflow-datasets has lazy modules with locks of their own, and two threads that import it
    for the first time wait for each other for ever.
    """
    with _IMPORTING:
        from tensorflow_datasets.proto import tf_example_pb2
    return tf_example_pb2


def serialize(example: Example) -> bytes:
    """Returns the `tf.train.Example` that `features().serialize_example` means, in one order of fields and faster."""
    record = _messages().Example()
    feature = record.features.feature
    for name in TEXT_FIELDS:
        feature[name].bytes_list.value.append(getattr(example, name).encode())
    for name in ID_FIELDS + FOCUS_FIELDS:
        feature[name].int64_list.value.extend(getattr(example, name).tolist())
    # Without it the order of the fields, and so the file, would differ from run to run.
    return record.SerializeToString(deterministic=True)


def deserialize(data: bytes) -> Example:
    """Returns the pair of one record. Raises UserError where a field is missing."""
    record = _messages().Example.FromString(data)
    feature = record.features.feature
    missing = [name for name in Example._fields if name not in feature]
    if missing:
        raise UserError(f"a record lacks {missing}, it has {sorted(feature)}: it was not written by `iterpref` build")
    texts = {name: feature[name].bytes_list.value[0].decode() for name in TEXT_FIELDS}
    return Example(
        texts["pair_id"],
        texts["task"],
        *(np.array(feature[name].int64_list.value, np.int32) for name in ID_FIELDS),
        *(np.array(feature[name].int64_list.value, np.uint8) for name in FOCUS_FIELDS),
        error_type=texts["error_type"],
    )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Index:
    """One row per record, in record order; all columns have shape (N,).

    `shard, offset, length, crc` place the record (frame start and payload size in bytes, masked CRC of the payload);
    `*_len` are token counts; `common_len` is the common token prefix of both completions; `*_focus_end` is the index
    of the last focus token + 1, or 0; `common_*_focus` are the focus tokens inside the common prefix, and
    `common_both_focus` its positions that are in the focus of both. `previous_len` is the common token prefix of this
    record's rejected side and that of the record before it, if prompt and chosen side are the same, else -1: here a
    group of pairs with one chosen side starts.
    """

    shard: np.ndarray
    offset: np.ndarray
    length: np.ndarray
    crc: np.ndarray
    prompt_len: np.ndarray
    chosen_len: np.ndarray
    rejected_len: np.ndarray
    common_len: np.ndarray
    chosen_focus_count: np.ndarray
    rejected_focus_count: np.ndarray
    chosen_focus_end: np.ndarray
    rejected_focus_end: np.ndarray
    common_chosen_focus: np.ndarray
    common_rejected_focus: np.ndarray
    common_both_focus: np.ndarray
    previous_len: np.ndarray

    def __len__(self) -> int:
        return len(self.shard)

    @functools.cached_property
    def group(self) -> np.ndarray:
        """The number of each record's group, which grows along the records."""
        return np.cumsum(self.previous_len < 0) - 1

    def columns(self) -> dict[str, np.ndarray]:
        """Returns the columns by name."""
        return {name: getattr(self, name) for name in COLUMNS}

    def fingerprint(self) -> str:
        """Returns a sha256 that changes with any record, its place or the order."""
        digest = hashlib.sha256()
        for name, column in self.columns().items():
            digest.update(f"{name} {column.dtype.str} {len(column)}\n".encode())
            digest.update(np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()

    def save(self, path: epath.PathLike) -> None:
        """Writes the columns as one `.npz`; equal indexes give equal bytes."""
        buffer = io.BytesIO()
        columns: dict[str, Any] = self.columns()
        np.savez(buffer, **columns)
        epath.Path(path).write_bytes(buffer.getvalue())


COLUMNS = tuple(field.name for field in dataclasses.fields(Index))
# Byte places pass 2**31 and a CRC is unsigned; everything else counts tokens.
DTYPES = {name: np.dtype(np.int64 if name in ("offset", "length", "crc") else np.int32) for name in COLUMNS}


def read_record(file: tfrecord.RecordFile, index: Index, i: int, *, record: int) -> Example:
    """Returns the pair that row `i` of an index places in a file, there number `record` (which errors name)."""
    offset, length, crc = (int(column[i]) for column in (index.offset, index.length, index.crc))
    return deserialize(file.read(offset, length, record=record, crc=crc))


def load_index(path: epath.PathLike) -> Index:
    """Reads what `Index.save` wrote. Raises UserError that says how to mend a missing or damaged index."""
    path = epath.Path(path)
    mend = (
        f'rebuild it with: python -c "from iterpref_jax.data import schema; schema.rebuild_index({str(path.parent)!r})"'
    )
    if not path.exists():
        raise UserError(f"{path}: the index is missing; {mend}")
    try:
        with np.load(io.BytesIO(path.read_bytes())) as stored:
            index = Index(**{name: stored[name] for name in COLUMNS})
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError) as error:
        raise UserError(f"{path}: the index is damaged ({error}); {mend}") from error
    if any(column.dtype != DTYPES[name] or column.shape != (len(index),) for name, column in index.columns().items()):
        raise UserError(f"{path}: the index has columns of unequal length or other types; {mend}")
    return index


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    """Returns how many tokens `a` and `b` agree in from the start."""
    shorter = min(len(a), len(b))
    differs = np.flatnonzero(a[:shorter] != b[:shorter])
    return int(differs[0]) if differs.size else shorter


def previous_len(example: Example, previous: Example | None) -> int:
    """Returns the index column of that name; `previous` is the record before this one (None: there is none)."""
    if previous is None or not all(
        np.array_equal(getattr(example, name), getattr(previous, name)) for name in ("prompt_ids", "chosen_ids")
    ):
        return -1
    return common_prefix(example.rejected_ids, previous.rejected_ids)


def counts(example: Example, previous: Example | None = None) -> dict[str, int]:
    """Returns the index columns that count tokens; `previous` is the record before this one, if any."""
    chosen, rejected = example.chosen_ids, example.rejected_ids
    common = common_prefix(chosen, rejected)
    chosen_focus, rejected_focus = np.flatnonzero(example.chosen_focus), np.flatnonzero(example.rejected_focus)
    return {
        "prompt_len": len(example.prompt_ids),
        "chosen_len": len(chosen),
        "rejected_len": len(rejected),
        "common_len": common,
        "chosen_focus_count": chosen_focus.size,
        "rejected_focus_count": rejected_focus.size,
        "chosen_focus_end": int(chosen_focus[-1]) + 1 if chosen_focus.size else 0,
        "rejected_focus_end": int(rejected_focus[-1]) + 1 if rejected_focus.size else 0,
        "common_chosen_focus": int(np.searchsorted(chosen_focus, common)),
        "common_rejected_focus": int(np.searchsorted(rejected_focus, common)),
        "common_both_focus": int((example.chosen_focus[:common] & example.rejected_focus[:common]).sum()),
        "previous_len": previous_len(example, previous),
    }


def make_index(rows: list[dict[str, int]]) -> Index:
    """Returns the index of rows that map every column to its value."""
    return Index(**{name: np.array([row[name] for row in rows], DTYPES[name]) for name in COLUMNS})


def index_shards(paths: Iterable[epath.PathLike]) -> Index:
    """Returns the index of record files by reading every record of them."""
    rows, previous = [], None
    for shard, path in enumerate(paths):
        offset = 0
        for payload in tfrecord.iterate(path):
            place = {"shard": shard, "offset": offset, "length": len(payload), "crc": tfrecord.masked_crc(payload)}
            example = deserialize(payload)
            rows.append(place | counts(example, previous))
            previous = example
            offset += len(payload) + tfrecord.FRAME_BYTES
    return make_index(rows)


def rebuild_index(path: epath.PathLike) -> None:
    """Writes the index of every split of a dataset folder anew from its records.

    Raises UserError if a record is damaged or the records are not the ones that were built.
    """
    dataset = open_dataset(path)
    for name, about in dataset.metadata["splits"].items():
        index = index_shards(dataset.path / shard_name(name, i, about["shards"]) for i in range(about["shards"]))
        _check_fingerprint(index, about, dataset.path / index_name(name))
        index.save(dataset.path / index_name(name))


def shard_name(split: str, shard: int, shards: int) -> str:
    """Returns the tfds file name of one shard."""
    return f"{DATASET_NAME}-{split}.tfrecord-{shard:05d}-of-{shards:05d}"


def index_name(split: str) -> str:
    """Returns the file name of a split's index."""
    return f"{split}.index.npz"


class Split:
    """The pairs of one split: `len(split)` and `split[i] -> Example`; a random-access source for Grain."""

    def __init__(self, path: epath.PathLike, index: Index, shards: list[str]):
        self.index = index
        self._files = [tfrecord.RecordFile(epath.Path(path) / name) for name in shards]
        self._first = np.searchsorted(index.shard, np.arange(len(shards)))

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> Example:
        if not 0 <= i < len(self):
            raise IndexError(f"pair {i} of {len(self)}")
        index, shard = self.index, int(self.index.shard[i])
        return read_record(self._files[shard], index, i, record=int(i - self._first[shard]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """A built folder: its path and its metadata (`iterpref.json`: settings, text rules, counts, splits)."""

    path: epath.Path
    metadata: dict

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits."""
        return tuple(self.metadata["splits"])

    @property
    def tokenizer_path(self) -> str:
        """The folder of the tokenizer that made the ids, on this machine: a copy of one in a bucket."""
        return _on_this_machine(str(self.path / "tokenizer"))

    def split(self, name: str) -> Split:
        """Returns one split. Raises UserError for an unknown name or an index that does not fit the records."""
        if name not in self.metadata["splits"]:
            hint = errors.did_you_mean(name, self.splits)
            raise UserError(f"{self.path}: no split {name!r}, there are {list(self.splits)}{hint}")
        about = self.metadata["splits"][name]
        index = load_index(self.path / index_name(name))
        _check_fingerprint(index, about, self.path / index_name(name))
        return Split(self.path, index, [shard_name(name, i, about["shards"]) for i in range(about["shards"])])


@functools.cache
def _on_this_machine(folder: str) -> str:
    """Returns the folder, or of one in a bucket, which transformers does not read, a copy for the process's time."""
    if "://" not in folder:
        return folder
    copy = tempfile.mkdtemp(prefix="iterpref-tokenizer-")
    atexit.register(shutil.rmtree, copy, ignore_errors=True)
    for file in epath.Path(folder).iterdir():
        (epath.Path(copy) / file.name).write_bytes(file.read_bytes())
    return copy


def open_dataset(path: epath.PathLike) -> Dataset:
    """Opens a folder that `build` made. Raises UserError, with the reason, for anything else."""
    path = epath.Path(path)
    metadata = path / METADATA_FILE
    try:
        is_there = metadata.exists()
    except ImportError as error:
        raise UserError(f"{path} needs a package: pip install 'iterpref_jax[gcs]' ({error})") from error
    if not is_there:
        raise UserError(f"{path}: {_why_no_dataset(path)}")
    try:
        content = json.loads(metadata.read_text())
    except ValueError as error:
        raise UserError(f"{metadata}: not JSON ({error}); build the dataset anew") from error
    version = content.get("schema_version")
    if version != SCHEMA_VERSION:
        raise UserError(f"{metadata}: schema_version {version!r}, this program reads {SCHEMA_VERSION}; build it anew")
    # In this thread, before those of a pipeline need it: see there.
    _messages()
    return Dataset(path=path, metadata=content)


def _why_no_dataset(path: epath.Path) -> str:
    building = path.parent / f"{path.name}.building"
    if path.name.endswith(".building") or (not path.exists() and building.exists()):
        return "the build of this dataset did not finish; run the same build command again, it goes on where it stopped"
    if not path.exists():
        return "no such folder; build a dataset there first"
    if (path / "dataset_info.json").exists():
        return f"a tfds folder without {METADATA_FILE}: it lacks the text rules and index that the trainer needs"
    return f"not a dataset: {METADATA_FILE} is missing"


def _check_fingerprint(index: Index, about: dict, path: epath.Path) -> None:
    if index.fingerprint() != about["fingerprint"]:
        raise UserError(
            f"{path}: not the index that was built ({len(index)} pairs found, {about['pairs']} built): records, index "
            f"and {METADATA_FILE} are not of one build; copy the whole folder again or build it anew"
        )
