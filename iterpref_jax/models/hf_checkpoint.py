"""Hugging Face checkpoints in and out without torch: into the shards of any mesh, and back to a folder."""

from __future__ import annotations

import functools
import json
import shutil
import types
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from iterpref_jax.atomic import replace_text
from iterpref_jax.errors import UserError
from iterpref_jax.models import checkpoint_folder, gguf_checkpoint
from iterpref_jax.models.blocks import BLOCK_BYTES, contiguous
from iterpref_jax.models.checkpoint_folder import INDEX, SINGLE, TOKENIZER_FILES, gguf_file
from iterpref_jax.models.config import ModelConfig
from iterpref_jax.models.generation_files import Generation
from iterpref_jax.models.gguf_file import GgufTensor
from iterpref_jax.models.hf_config import from_hf, read_config, read_raw, to_hf
from iterpref_jax.models.safetensors_file import DTYPES, WORDS, PlannedTensor, StoredTensor, write_file
from iterpref_jax.models.sharded_leaf import StoredLeaf, make_leaf
from iterpref_jax.models.transformer import Params, abstract_params, is_norm, param_shardings
from iterpref_jax.models.weights import Weight, weights
from iterpref_jax.parallel.rules import Placement

Stored = Mapping[str, StoredTensor | GgufTensor]


def config_content(folder: str) -> dict[str, Any]:
    """Returns the content of config.json, for a GGUF file one made of its metadata; errors as `model_config`."""
    gguf = gguf_file(folder)
    return gguf_checkpoint.config_json(gguf) if gguf else read_raw(folder)


def model_config(folder: str) -> ModelConfig:
    """Reads the shape of a folder of safetensors, a .gguf file or a folder with one.

    Raises:
        UserError: no such file, or what `hf_config.from_hf` refuses.
    """
    gguf = gguf_file(folder)
    return from_hf(gguf_checkpoint.config_json(gguf)) if gguf else read_config(folder)


def load(
    folder: str, dtype: str, placement: Placement | None = None, but_norms: str = ""
) -> tuple[ModelConfig, Params]:
    """Reads config.json and every weight of `folder` as `dtype`, straight into the shards of each device.

    `but_norms` is another dtype of all weights but those of norms: decoding needs no wider one than it computes in.

    Host memory beside the shards is a few `BLOCK_BYTES`; each host reads only what its devices hold. `folder` is a
    folder of safetensors, a .gguf file or a folder with one.

    Raises:
        UserError: no such folder; a missing, extra or misshaped tensor (all are listed); a damaged file (named).
    """
    config = model_config(folder)
    params: Params = {}
    for path, leaf in leaves(folder, config, dtype, placement, but_norms):
        _put(params, path, leaf)
    return config, params


def leaves(
    folder: str, config: ModelConfig, dtype: str, placement: Placement | None = None, but_norms: str = ""
) -> Iterator[tuple[tuple[str, ...], jax.Array]]:
    """Yields (path, leaf) of every parameter, read when its turn comes; see `load` for the errors."""
    gguf, shapes = gguf_file(folder), abstract_params(config, dtype)
    stored = gguf_checkpoint.stored_tensors(gguf) if gguf else checkpoint_folder.stored_tensors(folder)
    _check_complete(folder, config, stored, shapes)
    shardings = param_shardings(config, dtype, placement) if placement else None
    for weight in weights(config):
        shape = _at(shapes, weight.path)
        sharding = _at(shardings, weight.path) if shardings else jax.sharding.SingleDeviceSharding(jax.devices()[0])
        tensors = [stored[name] for name in weight.names(config)]
        leaf = StoredLeaf.of(tensors, shape.shape[: len(weight.stack)], weight.to_ours)
        kind = jnp.dtype(but_norms) if but_norms and not is_norm(weight.path) else shape.dtype
        yield weight.path, make_leaf(leaf, kind, sharding, BLOCK_BYTES)


def save(
    folder: str,
    config: ModelConfig,
    params: Params,
    *,
    dtype: str,
    copy_from: str | None,
    max_shard_gb: float,
    inert: Mapping[str, Any] = types.MappingProxyType({}),
    generation: Generation | None = None,
    untouched: Collection[str] = (),
    source: str | None = None,
) -> None:
    """Writes a folder that `transformers` loads: config.json, safetensors file(s) with index, tokenizer files.

    One tensor at a time is in host memory. A folder without config.json is an export that did not end.

    Args:
        params: leaves are arrays, or functions that return our array of one stored tensor from its place in the stack
            (`(layer,)`, `(layer, expert)` or `()`), called when its turn comes. Leaves whose tensors are all in
            `untouched` may be missing.
        copy_from: a folder whose tokenizer and generation files are copied; None copies nothing.
        inert: keys of config.json that the forward pass does not read (`hf_config.inert_fields`, token ids, ...).
        generation: what differs from the generation files of `copy_from` and from `inert`.
        max_shard_gb: a file is closed before it grows over this size (in 10^9 bytes).
        untouched: names of stored tensors that were not trained: their bytes, in their own dtype, come from `source`.
        source: the folder that training started from. A GGUF file has no bytes to copy: its tensors are written like
            the others.
    """
    if untouched and not source:
        raise ValueError("untouched tensors need the source that they come from")
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    kept = checkpoint_folder.stored_tensors(source) if source and not gguf_file(source) else {}
    tensors = list(_planned(config, params, dtype, {name: kept[name] for name in untouched} if kept else {}))
    _write_files(out, tensors, int(max_shard_gb * 1e9))
    _copy_tokenizer(copy_from, out)
    inert = generation.write(out, inert) if generation else inert
    # transformers 4 reads torch_dtype, transformers 5 reads dtype.
    _write_config(out, {**inert, **to_hf(config), "dtype": dtype, "torch_dtype": dtype})


def _check_complete(folder: str, config: ModelConfig, stored: Stored, shapes: Params) -> None:
    wanted = {name: weight for weight in weights(config) for name in weight.names(config)}
    # Some tied checkpoints store the head as well; it is the embedding.
    spare = {"lm_head.weight"} if config.tie_word_embeddings else set()
    problems = [f"missing {name}" for name in wanted if name not in stored]
    problems += [f"unexpected {name}" for name in stored if name not in wanted and name not in spare]
    for name, weight in wanted.items():
        tensor, expected = stored.get(name), _hf_shape(weight, _at(shapes, weight.path).shape)
        if tensor and tensor.shape != expected:
            problems.append(f"{name} has shape {list(tensor.shape)}, expected {list(expected)}")
        if tensor and tensor.dtype not in DTYPES:
            problems.append(f"{name} in {tensor.file.name} has dtype {tensor.dtype}, supported: {', '.join(DTYPES)}")
    if problems:
        raise UserError(checkpoint_folder.list_problems(f"{folder}: the weights do not fit config.json:", problems))


def _hf_shape(weight: Weight, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of one stored tensor of a leaf of this shape."""
    return weight.to_hf(np.broadcast_to(np.int8(0), shape[len(weight.stack) :])).shape


def _planned(
    config: ModelConfig, params: Params, dtype: str, untouched: Mapping[str, StoredTensor]
) -> Iterator[PlannedTensor]:
    shapes = abstract_params(config, dtype)
    for weight in weights(config):
        leaf_shape = _at(shapes, weight.path).shape
        shape = _hf_shape(weight, leaf_shape)
        for place, name in zip(np.ndindex(*leaf_shape[: len(weight.stack)]), weight.names(config), strict=True):
            if name in untouched:
                kept = untouched[name]
                yield PlannedTensor(name, kept.dtype, kept.shape, kept.raw)
            else:
                leaf = _at(params, weight.path)
                yield PlannedTensor(
                    name, WORDS[dtype], shape, functools.partial(_hf_blocks, weight, leaf, place, dtype)
                )


def _hf_blocks(weight: Weight, leaf: Any, place: tuple[int, ...], dtype: str) -> Iterator[np.ndarray]:
    """Yields one stored tensor in blocks of rows."""
    value = leaf(place) if callable(leaf) else _tensor_at(leaf, tuple(map(np.int32, place)))
    tensor = weight.to_hf(np.asarray(value))
    rows = max(1, BLOCK_BYTES // max(1, tensor.nbytes // len(tensor)))
    for begin in range(0, len(tensor), rows):
        yield contiguous(tensor[begin : begin + rows]).astype(DTYPES[WORDS[dtype]], copy=False)


@jax.jit
def _tensor_at(leaf: jax.Array, place: tuple[jax.Array, ...]) -> jax.Array:
    # A copy even of a leaf without a stack: an array keeps the host's copy of itself for as long as it lives.
    start = (*place, *(0,) * (leaf.ndim - len(place)))
    one = jax.lax.dynamic_slice(leaf, start, (*(1,) * len(place), *leaf.shape[len(place) :]))
    return one.reshape(leaf.shape[len(place) :])


def _write_files(out: Path, tensors: list[PlannedTensor], max_bytes: int) -> None:
    for stale in [out / "config.json", *out.glob("*.partial")]:
        stale.unlink(missing_ok=True)
    files: list[list[PlannedTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if files[-1] and size + tensor.nbytes > max_bytes:
            files.append([])
            size = 0
        files[-1].append(tensor)
        size += tensor.nbytes
    names = [f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)]
    names = [SINGLE] if len(files) == 1 else names
    for name, content in zip(names, files, strict=True):
        write_file(out / f"{name}.partial", content)
    for stale in [*out.glob("model*.safetensors"), out / INDEX]:
        stale.unlink(missing_ok=True)
    for name in names:
        (out / f"{name}.partial").rename(out / name)
    if len(files) > 1:
        _write_index(out, dict(zip(names, files, strict=True)))


def _write_index(out: Path, files: Mapping[str, list[PlannedTensor]]) -> None:
    weight_map = {tensor.name: file for file, content in files.items() for tensor in content}
    total = sum(tensor.nbytes for content in files.values() for tensor in content)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (out / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _write_config(out: Path, content: Mapping[str, Any]) -> None:
    replace_text(out / "config.json", json.dumps(content, indent=2) + "\n")


def _copy_tokenizer(source: str | None, out: Path) -> None:
    there = [Path(source) / name for name in TOKENIZER_FILES] if source else []
    for file in filter(Path.exists, there):
        shutil.copyfile(file, out / file.name)


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _put(tree: Params, path: tuple[str, ...], value) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value
