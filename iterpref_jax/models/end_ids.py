"""The token ids that end an answer, in config.json and generation_config.json of a Hugging Face folder.

Servers stop at the ids in these files. A base model's own often are not what it was trained to end an answer with:
Qwen2.5 ends a text with <|endoftext|> and a turn of its chat template with <|im_end|>.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from iterpref_jax.atomic import replace_text
from iterpref_jax.errors import UserError

KEY = "eos_token_id"
GENERATION = "generation_config.json"
_FILES = (GENERATION, "config.json")
_SPECIAL = ("bos_token_id", "pad_token_id", KEY)


def read(folder: str) -> list[int]:
    """Returns the ids that the files of `folder` name, as far as there are any."""
    return [one for name in _FILES for one in _ids(_content(Path(folder) / name))]


def joined(content: Mapping[str, Any], ends: Sequence[int]) -> dict[str, Any]:
    """Returns the content of either file with `ends` after its own ids: one id as a number, several as a list."""
    ids = list(dict.fromkeys([*_ids(content), *ends]))
    return {**content, KEY: ids[0] if len(ids) == 1 else ids} if ends else dict(content)


def write_generation(folder: Path, config: Mapping[str, Any], ends: Sequence[int]) -> None:
    """Adds `ends` to generation_config.json of `folder`; where there is none, makes one of the special ids of `config`.

    Without that file transformers and vLLM take the ids of config.json; with it they take those of this file alone.
    """
    path = folder / GENERATION
    if ends:
        own = _content(path) or {key: config[key] for key in _SPECIAL if config.get(key) is not None}
        replace_text(path, json.dumps(joined(own, ends), indent=2) + "\n")


def _content(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}; download it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object; download it again")
    return content


def _ids(content: Mapping[str, Any]) -> list[int]:
    found = content.get(KEY)
    return list(found) if isinstance(found, list) else [] if found is None else [found]
