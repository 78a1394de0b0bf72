"""How a model is asked and where its answers end: generation_config.json, chat_template.jinja, ids in config.json.

Servers stop at the ids in these files. A base model's own often are not what it was trained to end an answer with:
Qwen2.5 ends a text with <|endoftext|> and a turn of its chat template with <|im_end|>.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from iterpref_jax.atomic import replace_text
from iterpref_jax.errors import UserError

KEY = "eos_token_id"
GENERATION = "generation_config.json"
_FILES = (GENERATION, "config.json")
_SPECIAL = ("bos_token_id", "pad_token_id", KEY)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation:
    """What an export says beside its tokenizer.

    `ends` are token ids that end an answer beside the model's own. `config_from` is the folder whose
    generation_config.json is taken instead of the one that came with the tokenizer (None: that one). `chat_template`
    becomes chat_template.jinja, which goes before any other template ("": what came with the tokenizer).
    """

    ends: Sequence[int]
    config_from: str | None
    chat_template: str

    def write(self, folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
        """Writes the files into `folder` and returns the inert part of config.json, `config`, with the ends in it.

        Without generation_config.json transformers and vLLM take the ids of config.json; with it they take those of
        that file alone. Where there is none it is made of the special ids of `config`.
        """
        path, source = folder / GENERATION, Path(self.config_from or "") / GENERATION
        if self.config_from and source.exists():
            shutil.copyfile(source, path)
        if self.chat_template:
            (folder / "chat_template.jinja").write_text(self.chat_template, encoding="utf-8")
        if self.ends:
            own = _content(path) or {key: config[key] for key in _SPECIAL if config.get(key) is not None}
            replace_text(path, json.dumps(joined(own, self.ends), indent=2) + "\n")
        return joined(config, self.ends)


def read(folder: str) -> list[int]:
    """Returns the ids that end an answer which the files of `folder` name, as far as there are any."""
    return [one for name in _FILES for one in ids(_content(Path(folder) / name))]


def ids(content: Mapping[str, Any]) -> list[int]:
    """Returns the ids that end an answer which the content of one file names."""
    found = content.get(KEY)
    return list(found) if isinstance(found, list) else [] if found is None else [found]


def joined(content: Mapping[str, Any], ends: Sequence[int]) -> dict[str, Any]:
    """Returns the content of either file with `ends` after its own ids: one id as a number, several as a list."""
    found = list(dict.fromkeys([*ids(content), *ends]))
    return {**content, KEY: found[0] if len(found) == 1 else found} if ends else dict(content)


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
