"""Hugging Face checkpoints in and out without torch: safetensors read by byte range into shards, and written back.

The safetensors format: 8 bytes little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, data.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import jax
import ml_dtypes
import numpy as np
import safetensors.numpy

from iterpref_jax.errors import UserError
from iterpref_jax.models.config import ModelConfig, read_config, to_hf
from iterpref_jax.models.transformer import Params, abstract_params, param_shardings
from iterpref_jax.models.weights import Weight, weights
from iterpref_jax.parallel.rules import Placement

_DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
_INDEX = "model.safetensors.index.json"
# Files that make a folder complete for `transformers` and that training does not change.
TOKENIZER_FILES = (
    "tokenizer.json tokenizer_config.json special_tokens_map.json chat_template.jinja added_tokens.json vocab.json "
    "merges.txt tokenizer.model generation_config.json"
).split()
# Buffers that old checkpoints stored; both are computed, not learned.
_IGNORED_SUFFIXES = ("rotary_emb.inv_freq", "masked_bias", "attn.bias")


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies: file, dtype, shape and the byte range of its data."""

    file: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int

    def open(self) -> np.ndarray:
        """Returns a read-only memory map: slicing it reads only the pages of the slice."""
        return np.memmap(self.file, self.dtype, "r", self.begin, self.shape) if self.shape else np.zeros((), self.dtype)


def load(folder: str, dtype: str, placement: Placement | None = None) -> tuple[ModelConfig, Params]:
    """Reads config.json and every weight of `folder` as `dtype`, straight into the shards of each device.

    Raises:
        UserError: no such folder; a missing, extra or misshaped tensor (all are listed); a truncated file (named).
    """
    config = read_config(folder)
    stored = _stored_tensors(Path(folder))
    table = weights(config)
    shapes = abstract_params(config, dtype)
    _check_complete(folder, config, table, stored, shapes)
    shardings = param_shardings(config, dtype, placement) if placement else None
    params: Params = {}
    for weight in table:
        shape = _at(shapes, weight.path)
        sharding = _at(shardings, weight.path) if shardings else jax.sharding.SingleDeviceSharding(jax.devices()[0])
        read = functools.partial(_read_shard, weight, stored, shape)
        _put(params, weight.path, jax.make_array_from_callback(shape.shape, sharding, read))
    return config, params


def save(
    folder: str,
    config: ModelConfig,
    params: Params,
    *,
    dtype: str,
    copy_from: str | None,
    max_shard_gb: float,
    inert: Mapping[str, Any] = types.MappingProxyType({}),
) -> None:
    """Writes a folder that `transformers` loads: config.json, safetensors file(s) with index, tokenizer files.

    Args:
        copy_from: a folder whose tokenizer and generation files are copied; None copies nothing.
        inert: keys of config.json that the forward pass does not read (`config.inert_fields`, token ids, ...).
        max_shard_gb: a file is closed before it grows over this size (in 10^9 bytes).
    """
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    # A folder with config.json is a whole one: an old one goes first, the new one comes last.
    for stale in [out / "config.json", *out.glob("model-*.partial")]:
        stale.unlink(missing_ok=True)
    _write_tensors(out, _hf_tensors(config, params, dtype), int(max_shard_gb * 1e9))
    if copy_from:
        _copy_tokenizer(Path(copy_from), out)
    # transformers 4 reads torch_dtype, transformers 5 reads dtype.
    content = {**inert, **to_hf(config), "dtype": dtype, "torch_dtype": dtype}
    (out / "config.json").write_text(json.dumps(content, indent=2) + "\n")


def _copy_tokenizer(source: Path, out: Path) -> None:
    for name in TOKENIZER_FILES:
        if (source / name).exists():
            (out / name).write_bytes((source / name).read_bytes())


def fingerprint(folder: str) -> str:
    """Returns a string that changes with any byte of config.json or of a weight file."""
    parts = []
    for file in [Path(folder) / "config.json", *_files(Path(folder))]:
        checksum = google_crc32c.Checksum()
        with file.open("rb") as stream:
            while block := stream.read(1 << 24):
                checksum.update(block)
        parts.append(f"{file.name}:{file.stat().st_size}:{checksum.hexdigest().decode()}")
    return " ".join(parts)


def _stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    stored = {}
    for file in _files(folder):
        stored.update(_read_header(file))
    return {name: tensor for name, tensor in stored.items() if not name.endswith(_IGNORED_SUFFIXES)}


def _files(folder: Path) -> list[Path]:
    index = folder / _INDEX
    if index.exists():
        files = [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
        missing = [file.name for file in files if not file.exists()]
        if missing:
            raise UserError(f"{index} names files that do not exist: {', '.join(missing)}; download the folder again")
        return files
    if (folder / "model.safetensors").exists():
        return [folder / "model.safetensors"]
    raise UserError(f"{folder} holds neither model.safetensors nor {_INDEX}; other weight formats are not read")


def _read_header(file: Path) -> dict[str, StoredTensor]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > size - 8:
            raise UserError(f"{file} is truncated or no safetensors file: {size} bytes cannot hold its header")
        try:
            header = json.loads(stream.read(length))
        except ValueError as error:
            raise UserError(f"{file} is damaged: its header is not JSON ({error}); download it again") from error
    header.pop("__metadata__", None)
    end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if end != size:
        raise UserError(f"{file} is damaged: {size} bytes, but its header describes {end}; download it again")
    return {name: _stored(file, name, entry, 8 + length) for name, entry in header.items()}


def _stored(file: Path, name: str, entry: dict, data: int) -> StoredTensor:
    if entry["dtype"] not in _DTYPES:
        raise UserError(f"{file}: tensor {name} has dtype {entry['dtype']}; supported: {', '.join(_DTYPES)}")
    return StoredTensor(file, _DTYPES[entry["dtype"]], tuple(entry["shape"]), data + entry["data_offsets"][0])


def _names(weight: Weight, config: ModelConfig) -> list[str]:
    if not weight.stacked:
        return [weight.name]
    return [weight.name.format(layer=layer) for layer in range(config.num_hidden_layers)]


def _check_complete(folder: str, config: ModelConfig, table: list[Weight], stored: dict, shapes: Params) -> None:
    wanted = {name: weight for weight in table for name in _names(weight, config)}
    if config.tie_word_embeddings:
        # Some tied checkpoints store the head as well; it is the embedding.
        stored = {name: tensor for name, tensor in stored.items() if name != "lm_head.weight"}
    problems = [f"missing {name}" for name in wanted if name not in stored]
    problems += [f"unexpected {name}" for name in stored if name not in wanted]
    for name, weight in wanted.items():
        if name in stored:
            shape = _at(shapes, weight.path).shape[1 if weight.stacked else 0 :]
            expected = weight.to_hf(np.broadcast_to(np.int8(0), shape)).shape
            if stored[name].shape != expected:
                problems.append(f"{name} has shape {list(stored[name].shape)}, expected {list(expected)}")
    if problems:
        more = f"\n  ... and {len(problems) - 40} more" if len(problems) > 40 else ""
        listed = "\n  ".join(problems[:40])
        raise UserError(f"{folder}: the weights do not fit config.json:\n  {listed}{more}")


def _read_shard(weight: Weight, stored: dict[str, StoredTensor], shape: Any, index: Any) -> np.ndarray:
    if not weight.stacked:
        return np.ascontiguousarray(weight.to_ours(stored[weight.name].open())[index]).astype(shape.dtype)
    layers = range(*index[0].indices(shape.shape[0]))
    parts = [weight.to_ours(stored[weight.name.format(layer=layer)].open())[index[1:]] for layer in layers]
    out = np.empty((len(parts), *parts[0].shape), shape.dtype)
    for layer, part in enumerate(parts):
        out[layer] = part
    return out


def _hf_tensors(config: ModelConfig, params: Params, dtype: str) -> Iterator[tuple[str, np.ndarray]]:
    numpy_dtype = np.dtype(ml_dtypes.bfloat16) if dtype == "bfloat16" else np.dtype(dtype)
    for weight in weights(config):
        leaf = _at(params, weight.path)
        for layer, name in enumerate(_names(weight, config)):
            value = np.asarray(leaf[layer] if weight.stacked else leaf)
            yield name, np.ascontiguousarray(weight.to_hf(value).astype(numpy_dtype))


def _write_tensors(out: Path, tensors: Iterator[tuple[str, np.ndarray]], max_bytes: int) -> None:
    shards: list[dict[str, Any]] = [{}]
    files: list[Path] = []
    total = size = 0

    def close() -> None:
        files.append(out / f"model-{len(files) + 1:05d}.partial")
        safetensors.numpy.save_file(shards[-1], files[-1], metadata={"format": "pt"})
        shards[-1] = dict.fromkeys(shards[-1])

    for name, tensor in tensors:
        if shards[-1] and size + tensor.nbytes > max_bytes:
            close()
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size, total = size + tensor.nbytes, total + tensor.nbytes
    close()
    _name_files(out, files, shards, total)


def _name_files(out: Path, files: list[Path], shards: list[dict], total: int) -> None:
    for stale in [*out.glob("model*.safetensors"), out / _INDEX]:
        stale.unlink(missing_ok=True)
    if len(files) == 1:
        files[0].rename(out / "model.safetensors")
        return
    weight_map = {}
    for number, (file, names) in enumerate(zip(files, shards, strict=True), start=1):
        target = out / f"model-{number:05d}-of-{len(files):05d}.safetensors"
        file.rename(target)
        weight_map |= dict.fromkeys(names, target.name)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (out / _INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _put(tree: Params, path: tuple[str, ...], value) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value
