"""What `model.path` names: a local folder, a .gguf file or a hub repository; and the weight files in it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from iterpref_jax.errors import UserError
from iterpref_jax.models.safetensors_file import StoredTensor, read_header

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# Files that make a folder complete for `transformers` and that training does not change.
TOKENIZER_FILES = (
    "tokenizer.json tokenizer_config.json special_tokens_map.json chat_template.jinja chat_template.json "
    "added_tokens.json vocab.json merges.txt tokenizer.model spiece.model tekken.json generation_config.json"
).split()
# Never the same weights once more: pickled, in folders for other programs, or Mistral's consolidated.safetensors.
_HUB_PATTERNS = ["*.json", "model*.safetensors", *(name for name in TOKENIZER_FILES if not name.endswith(".json"))]
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
# Buffers that old checkpoints stored; they are computed, not learned.
_IGNORED_SUFFIXES = ("rotary_emb.inv_freq", "masked_bias", "attn.bias")
_PICKLES = ("*.bin", "*.pt", "*.pth")


def resolve(path: str) -> str:
    """Returns the local folder or .gguf file of `model.path`, downloading a hub repository such as "Org/Name" first.

    Raises:
        UserError: neither a folder nor a .gguf file, and the hub has no such repository or cannot be reached.
    """
    if "://" in path:
        raise UserError(f"model.path={path}: weights are read by byte range, so it must be a local or mounted folder")
    if Path(path).is_dir() or (Path(path).is_file() and path.endswith(".gguf")):
        return path
    if Path(path).exists():
        raise UserError(f"model.path={path} is a file; name the folder that holds it, or a .gguf file")
    if path.endswith(".gguf") or not _HUB_NAME.fullmatch(path):
        raise UserError(f"model.path={path} does not exist, and it is no name of a hub repository (Org/Name)")
    return _download(path)


def gguf_file(path: str) -> Path | None:
    """Returns the GGUF file that `path` is, or is the only weight file of; None for a folder of safetensors.

    Raises:
        UserError: a folder with several .gguf files and no safetensors.
    """
    if path.endswith(".gguf"):
        return Path(path)
    found = sorted(Path(path).glob("*.gguf"))
    if not found or any(Path(path).glob("*.safetensors")):
        return None
    if len(found) > 1:
        raise UserError(f"{path} holds {len(found)} .gguf files; name one: {', '.join(map(str, found))}")
    return found[0]


def weight_files(folder: str) -> list[Path]:
    """Returns the files that hold the weights: one .gguf file, or safetensors files by name.

    Raises:
        UserError: there are none, or the index cannot be read or names files that are not there.
    """
    gguf, index, single = gguf_file(folder), Path(folder) / INDEX, Path(folder) / SINGLE
    if gguf:
        return [gguf]
    # The order of transformers, where an older export left both.
    if single.exists():
        return [single]
    if index.exists():
        return [index.parent / name for name in sorted(set(_weight_map(index).values()))]
    raise UserError(_no_weights(Path(folder)))


def stored_tensors(folder: str) -> dict[str, StoredTensor]:
    """Returns every tensor of a folder of safetensors by name.

    Raises:
        UserError: a missing or damaged file (named), or an index that disagrees with the files' headers.
    """
    headers = {file.name: read_header(file) for file in weight_files(folder)}
    if SINGLE not in headers:
        _check_index(Path(folder) / INDEX, headers)
    tensors = {name: tensor for header in headers.values() for name, tensor in header.items()}
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(_IGNORED_SUFFIXES)}


def list_problems(head: str, problems: Sequence[str]) -> str:
    """Returns one message with every problem on its own line, cut at 40."""
    more = f"\n  ... and {len(problems) - 40} more" if len(problems) > 40 else ""
    return f"{head}\n  " + "\n  ".join(problems[:40]) + more


def _download(name: str) -> str:
    import huggingface_hub

    try:
        return huggingface_hub.snapshot_download(name, allow_patterns=_HUB_PATTERNS, ignore_patterns=["*/*"])
    # Its HTTP library's own errors come through as well, and which library that is depends on the version.
    except Exception as error:
        raise UserError(
            f"model.path={name}: there is no such folder, and it could not be had from the Hugging Face hub "
            f"({type(error).__name__}: {error}); name a folder, or download it where the hub can be reached"
        ) from error


def _weight_map(index: Path) -> dict[str, str]:
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{index} is damaged: it is not JSON ({error}); download it again") from error
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(f, str) for f in weight_map.values()):
        raise UserError(f"{index} is damaged: it has no weight_map of tensor names to file names; download it again")
    # The files lie beside the index: a path would lead out of the folder.
    missing = [name for name in sorted(set(weight_map.values())) if "/" in name or not (index.parent / name).is_file()]
    if missing:
        raise UserError(
            f"{index} names {len(missing)} file(s) that do not exist: {', '.join(missing)}; download the folder again"
        )
    return weight_map


def _check_index(index: Path, headers: dict[str, dict[str, StoredTensor]]) -> None:
    weight_map = _weight_map(index)
    there = {(name, file) for file, header in headers.items() for name in header}
    said = set(weight_map.items())
    problems = [f"{name} is not in {file}, where the index has it" for name, file in sorted(said - there)]
    problems += [
        f"{name} is in {file}, but the index has it {f'in {weight_map[name]}' if name in weight_map else 'nowhere'}"
        for name, file in sorted(there - said)
    ]
    if problems:
        head = f"{index} disagrees with the headers of its files; download the folder again:"
        raise UserError(list_problems(head, problems))


def _no_weights(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder} does not exist: a model folder holds config.json and {SINGLE} or {INDEX}"
    parts = sorted(file.name for file in folder.glob("*.safetensors"))
    pickles = sorted(file.name for kind in _PICKLES for file in folder.glob(kind))
    if parts:
        return (
            f"{folder} holds {', '.join(parts[:4])}{', ...' if len(parts) > 4 else ''}, but neither {INDEX} nor "
            f"{SINGLE}; download the rest of the folder"
        )
    if pickles:
        return (
            f"{folder} holds pickled PyTorch weights only ({', '.join(pickles[:4])}), which are not read; convert them "
            "once: transformers.AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(OUT, "
            "safe_serialization=True)"
        )
    return f"{folder} holds neither {SINGLE} nor {INDEX}; other weight formats are not read"
