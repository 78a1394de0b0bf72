"""The prompts: text files with `${names}`, shipped with the package, that a user may copy and edit.

A file holds the system message, a line `---`, and the user's message; without that line it is the user's message alone.
`$$` is a dollar sign.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.resources
import string
from pathlib import Path

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
class Prompt:
    """One template; `version` is the SHA-256 of its text, which is stored with every answer and judgement."""

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


def load(folder: str) -> dict[str, Prompt]:
    """Returns the prompts of a folder, and the package's own for those that it lacks; "" is the package's own.

    Raises:
        UserError: a folder that is none or holds a file of another name; a template that cannot be read, uses a name
            that does not exist, or lacks one that it needs.
    """
    own = importlib.resources.files("iterpref_jax.codeflow.generate") / "prompts"
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
    return {name: _prompt(name, *texts[name]) for name in FIELDS}


def _files(folder: str) -> list[Path]:
    if not folder:
        return []
    if not Path(folder).is_dir():
        raise UserError(f"generate.prompts: {folder!r} is not a folder; leave it empty for the prompts of the package")
    return [path for path in Path(folder).iterdir() if not path.name.startswith(".")]


def _prompt(name: str, text: str, place: str) -> Prompt:
    head, separator, body = text.partition(f"\n{SEPARATOR}\n")
    parts = [head, body] if separator else ["", text]
    system, user = (string.Template(part.strip()) for part in parts)
    used: set[str] = set()
    for template in (system, user):
        if not template.is_valid():
            raise UserError(f"{place}: a '$' that begins no ${{name}}; write $$ for a dollar sign")
        used.update(template.get_identifiers())
    known = (*FIELDS[name], *MORE_FIELDS.get(name, ()))
    for unknown in sorted(used - set(known)):
        hint = did_you_mean(unknown, known)
        raise UserError(f"{place}: the prompt {name} knows no ${{{unknown}}}{hint}; it has {', '.join(known)}")
    for missing in (field for field in FIELDS[name] if field not in used):
        raise UserError(f"{place}: the prompt {name} must use ${{{missing}}}")
    version = hashlib.sha256(text.encode()).hexdigest()[:16]
    return Prompt(name=name, system=system if system.template else None, user=user, version=version)
