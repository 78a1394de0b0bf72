"""The Python that programs run in: this one, or what `sandbox.python` names, such as a virtual environment's."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
import struct
import subprocess
import types
from collections.abc import Mapping
from typing import Any

from iterpref_jax.codeflow.sandbox import facts
from iterpref_jax.errors import UserError

# What runs inside is written for it.
OLDEST = (3, 10)
ASK_S = 60.0
NO_PYTHON = "which ran, but is no Python"
WANTED = f"wanted CPython {OLDEST[0]}.{OLDEST[1]} or newer"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interpreter:
    """`base` is the folder of its standard library, `packages` those of what is installed, first the nearest.

    `magic` begins what it compiles. Before 3.11 nothing keeps a script's folder off its path (`has_safe_path`).
    """

    executable: str
    version: tuple[int, ...]
    base: str
    packages: tuple[str, ...]
    magic: bytes
    has_safe_path: bool

    def __str__(self) -> str:
        return f"{self.executable} (Python {'.'.join(map(str, self.version))})"

    def options(self) -> list[str]:
        """Returns those of a start that is isolated as by `-I`, which would ignore PYTHONHASHSEED."""
        return [*(["-P"] if self.has_safe_path else []), "-s", "-S", "-B", "-X", "utf8"]

    def command(self, module: types.ModuleType) -> list[str]:
        """Returns how it starts a module of ours."""
        return [self.executable, *self.options(), self.file_of(module)]

    def file_of(self, module: types.ModuleType) -> str:
        """Returns the compiled file of a module if it may run that: compiling anew is a third of a cold start."""
        compiled, source = module.__spec__.cached if module.__spec__ else None, str(module.__file__)
        return compiled if compiled and self._is_current(compiled, source) else source

    def _is_current(self, compiled: str, source: str) -> bool:
        """Whether it was compiled for this version from its source as it is now (PEP 552): old files may stay."""
        try:
            with open(compiled, "rb") as file:
                magic, flags, modified, size = struct.unpack("<4s3I", file.read(16))
        except (OSError, struct.error):
            return False
        now = os.stat(source)
        wanted = self.magic, 0, int(now.st_mtime) & 0xFFFFFFFF, now.st_size & 0xFFFFFFFF
        return (magic, flags, modified, size) == wanted


@functools.cache
def own() -> Interpreter:
    """Returns the one that runs this."""
    return _of(facts.facts())


def find(named: str) -> Interpreter:
    """Returns the interpreter at a path, or of a name on PATH, after asking it; "" is the one that runs this.

    Raises UserError for what is none or too old, and for one whose folders hold the user's home: programs read them.
    """
    if not named:
        return own()
    path = shutil.which(os.path.expanduser(named))
    if path is None:
        inside = os.path.join(named, "bin", "python")
        advice = f"; did you mean {inside}?" if os.path.exists(inside) else "; check the path, and that it may be run"
        raise UserError(f"sandbox.python: {named!r} is not a program{advice}")
    found = _asked(os.path.abspath(path))
    if found["implementation"] != "cpython" or tuple(found["version"]) < OLDEST:
        version = ".".join(map(str, found["version"]))
        raise UserError(f"sandbox.python: {WANTED}, got {named}, which is {found['implementation']} {version}")
    interpreter = _of(found)
    _check_home(interpreter)
    return interpreter


def _check_home(interpreter: Interpreter) -> None:
    home = os.path.realpath(os.path.expanduser("~"))
    for folder in (interpreter.base, *interpreter.packages):
        if os.path.commonpath([folder, home]) == folder:
            raise UserError(
                f"sandbox.python: programs read the folder {folder} of {interpreter}, and your home {home} lies in it; "
                "name an interpreter with a folder of its own"
            )


def _of(found: Mapping[str, Any]) -> Interpreter:
    return Interpreter(
        executable=found["executable"],
        version=tuple(found["version"]),
        base=found["base"],
        packages=tuple(found["packages"]),
        magic=bytes(found["magic"]),
        has_safe_path=found["has_safe_path"],
    )


def _asked(path: str) -> dict[str, Any]:
    command = [path, "-I", facts.__file__]
    try:
        said = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=ASK_S,
            check=True,
        )
        # Its own start may print something first.
        found = json.loads(said.stdout.strip().rpartition("\n")[2])
        if isinstance(found, dict):
            return found
        why = NO_PYTHON
    except subprocess.CalledProcessError as error:
        why = f"which ended with code {error.returncode}: {error.stderr.strip().rpartition(chr(10))[2][:200]}"
    except (OSError, subprocess.TimeoutExpired) as error:
        why = str(error)
    except ValueError:
        why = NO_PYTHON
    raise UserError(f"sandbox.python: {WANTED}, got {path}: {why}")
