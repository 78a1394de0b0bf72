"""The prompts: text files with `${names}`, shipped with the package, that a user may copy and edit.

For a chat a file holds the system message, a line `---`, and the user's message; without that line it is the user's
message alone. For a base model it holds a text, a line `---`, the first words of the answer, which go with the text, a
line `---`, and what ends the answer, one a line: the first of these belongs to the answer. `$$` is a dollar sign in a
message or a text.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.resources
import string
from collections.abc import Mapping
from pathlib import Path

from iterpref_jax.codeflow.endpoint import Answer, Ask, Sampling
from iterpref_jax.errors import UserError, did_you_mean

# Template -> the names that it must use.
FIELDS = {
    "instruction": ("features",),
    "solution": ("instruction",),
    "tests": ("instruction", "interface", "style", "checks"),
    "repair": ("instruction", "code", "feedback"),
    "score_tests": ("instruction", "code", "tests"),
    "judge_pair": ("instruction", "first", "second"),
    "evolve_features": ("tree",),
}
# And those that it may use besides.
MORE_FIELDS = {"repair": ("tests",)}
SEPARATOR = "---"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatPrompt:
    """Asks a model that follows instructions; `version` is the SHA-256 of its text, stored with every answer."""

    name: str
    system: string.Template | None
    user: string.Template
    version: str

    def messages(self, **values: str) -> tuple[dict[str, str], ...]:
        """Returns the messages with `values` in place of the names, as they are: a `$` in a value stays."""
        user = {"role": "user", "content": self.user.substitute(values)}
        if self.system is None:
            return (user,)
        return ({"role": "system", "content": self.system.substitute(values)}, user)

    def ask(self, values: Mapping[str, str], sampling: Sampling, sample: int) -> Ask:
        """Returns the question."""
        messages = self.messages(**values)
        return Ask(messages=messages, sampling=sampling, purpose=self.name, prompt_version=self.version, sample=sample)

    def whole(self, answer: Answer) -> str:
        """Returns the text of an answer."""
        return answer.text


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompletionPrompt:
    """Has a base model go on with a text and the beginning of an answer, up to one of `stop`."""

    name: str
    text: string.Template
    begin: str
    stop: tuple[str, ...]
    version: str

    def ask(self, values: Mapping[str, str], sampling: Sampling, sample: int) -> Ask:
        """Returns the question."""
        return Ask(
            prompt=f"{self.text.substitute(values)}\n{self.begin}",
            sampling=dataclasses.replace(sampling, stop=self.stop),
            purpose=self.name,
            prompt_version=self.version,
            sample=sample,
        )

    def whole(self, answer: Answer) -> str:
        """Returns the answer with its beginning, and with its end if the model came to one."""
        end = f"\n{self.stop[0]}" if answer.finish_reason == "stop" else ""
        return f"{self.begin}{answer.text}{end}"


Prompt = ChatPrompt | CompletionPrompt


def load(folder: str, *, chat: bool) -> dict[str, Prompt]:
    """Returns the prompts of a folder, and the package's own for those that it lacks; "" is the package's own.

    Raises:
        UserError: a folder that is none or holds a file of another name; a template that cannot be read, uses a name
            that does not exist, or lacks one that it needs, or a part.
    """
    own = importlib.resources.files("iterpref_jax.codeflow.generate") / ("prompts" if chat else "base_prompts")
    texts = {name: ((own / f"{name}.txt").read_text(encoding="utf-8"), f"{name}.txt") for name in FIELDS}
    for path in sorted(_files(folder)):
        if path.stem not in FIELDS or path.suffix != ".txt":
            raise UserError(
                f"{path}: no prompt has this name{did_you_mean(path.stem, FIELDS)}; known: "
                + ", ".join(f"{name}.txt" for name in FIELDS)
            )
        try:
            texts[path.stem] = (path.read_text(encoding="utf-8"), str(path))
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 at byte {error.start}; convert the file") from error
    make = _chat if chat else _completion
    return {name: make(name, *texts[name]) for name in FIELDS}


def _files(folder: str) -> list[Path]:
    if not folder:
        return []
    if not Path(folder).is_dir():
        raise UserError(f"generate.prompts: {folder!r} is not a folder; leave it empty for the prompts of the package")
    return [path for path in Path(folder).iterdir() if not path.name.startswith(".")]


def _chat(name: str, text: str, place: str) -> ChatPrompt:
    head, separator, body = text.partition(f"\n{SEPARATOR}\n")
    parts = [head, body] if separator else ["", text]
    system, user = (string.Template(part.strip()) for part in parts)
    _check_names(name, (system, user), place)
    return ChatPrompt(name=name, system=system if system.template else None, user=user, version=_version(text))


def _completion(name: str, text: str, place: str) -> CompletionPrompt:
    parts = text.split(f"\n{SEPARATOR}\n")
    if len(parts) != 3:
        raise UserError(
            f"{place}: generate.chat = False wants a text, a line {SEPARATOR}, the beginning of the answer, a line "
            f"{SEPARATOR}, and what ends the answer; there are {len(parts)} parts"
        )
    template = string.Template(parts[0])
    _check_names(name, (template,), place)
    stop = tuple(line for line in parts[2].split("\n") if line.strip())
    if not stop:
        raise UserError(f"{place}: nothing ends the answer; write it below the second line {SEPARATOR}, such as ```")
    return CompletionPrompt(name=name, text=template, begin=parts[1], stop=stop, version=_version(text))


def _check_names(name: str, templates: tuple[string.Template, ...], place: str) -> None:
    used: set[str] = set()
    for template in templates:
        if not template.is_valid():
            raise UserError(f"{place}: a '$' that begins no ${{name}}; write $$ for a dollar sign")
        used.update(template.get_identifiers())
    known = (*FIELDS[name], *MORE_FIELDS.get(name, ()))
    for unknown in sorted(used - set(known)):
        hint = did_you_mean(unknown, known)
        raise UserError(f"{place}: the prompt {name} knows no ${{{unknown}}}{hint}; it has {', '.join(known)}")
    for missing in (field for field in FIELDS[name] if field not in used):
        raise UserError(f"{place}: the prompt {name} must use ${{{missing}}}")


def _version(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
