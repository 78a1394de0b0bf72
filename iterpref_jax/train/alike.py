"""What all hosts must have in common, compared at the start: code, versions, configuration, data, devices, folders."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import platform
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from etils import epath

import iterpref_jax
from iterpref_jax.errors import UserError
from iterpref_jax.models.fingerprint import sample
from iterpref_jax.parallel import distributed
from iterpref_jax.train.run import Run
from iterpref_jax.train.same_run import flat

# What computes, or decides what is computed.
PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "transformers")
# Clients of a file server believe for up to a minute (NFS: acdirmax) what they knew of a folder.
SEEN_WITHIN_S = 70.0
_MARK = ".hosts"


def check_program(command: str, config: Mapping[str, Any]) -> None:
    """Compares command, code, versions and configuration; touches no device.

    Raises:
        UserError: on every host, with each thing that differs and who has which value.
    """
    versions = {f"version of {name}": _version(name) for name in PACKAGES}
    same = {"command": command, "code": _code(), "version of Python": platform.python_version()} | versions
    _compare("the same program", same | {f"config.{key}": value for key, value in flat(dict(config)).items()})


def check_inputs(run: Run) -> None:
    """Compares data, tokenizer, initial weights and devices; see `check_program` for the errors."""
    kinds = sorted({device.device_kind for device in jax.local_devices()})
    here: dict[str, Any] = {"devices a process": jax.local_device_count(), "kind of devices": ", ".join(kinds)}
    if run.model_folder and distributed.process_count() > 1:
        # No process reads all of its copy for the fingerprint.
        here["weights' samples"] = sample(run.model_folder)
    _compare("alike", here | {name: _digest(repr(value)) for name, value in flat(run.fingerprint).items()})


def check_shared(folder: epath.Path) -> None:
    """Makes sure that every host sees what the others write under `folder`, which process 0 makes.

    Raises:
        UserError: on every host, with the hosts that do not, or that cannot write there.
    """
    blind, unable = _survey(folder, SEEN_WITHIN_S)
    if unable:
        number, why = unable[0]
        raise UserError(f"{folder}: {distributed.described(number)} cannot write there ({why})")
    if blind:
        names = ", ".join(map(distributed.described, blind))
        raise UserError(
            f"{folder} is not one folder for all hosts: {distributed.described(0)} does not share it with {names}. "
            "Checkpoints and the reference cache need a folder that all hosts read and write: a network file system or "
            "a bucket"
        )


def is_shared(folder: epath.Path, within_s: float) -> bool:
    """Whether every host sees, in this time, what the others write under `folder`."""
    return _survey(folder, within_s) == ([], [])


def _survey(folder: epath.Path, within_s: float) -> tuple[list[int], list[tuple[int, str]]]:
    """Returns the processes that do not share the folder with process 0, and those that cannot write, with why."""
    if distributed.process_count() == 1:
        return [], []
    token = distributed.from_main("shared token", secrets.token_hex(8))
    mark = folder / f"{_MARK}-{token}"
    # A refusal is told, not raised: the others wait for this word. They look only then: NFS would keep for half a
    # minute that a file was not there when it was looked for.
    made = distributed.from_main("shared made", _made(mark, token) if distributed.is_main() else None)
    if made:
        return [], [(0, made)]
    everybody = distributed.gather("shared seen", _leave_word(mark, token, within_s))
    blind = [number for number, (sees, _) in enumerate(everybody) if not sees]
    if distributed.is_main():
        numbers = [number for number, (sees, _) in enumerate(everybody) if sees]
        hidden = [number for number in numbers if not _until((mark / str(number)).exists, within_s)]
        mark.rmtree()
    blind += distributed.from_main("shared hidden", hidden if distributed.is_main() else None)
    return blind, [(number, why) for number, (_, why) in enumerate(everybody) if why]


def _made(mark: epath.Path, token: str) -> str:
    """Makes the folder with the file of process 0; returns why it could not be written."""
    try:
        mark.mkdir(parents=True)
        # An empty folder of a bucket does not exist.
        (mark / "0").write_text(token)
    except OSError as error:
        return str(error)
    return ""


def _leave_word(mark: epath.Path, token: str, within_s: float) -> tuple[bool, str]:
    """Writes this process' file if that of process 0 is seen; returns whether, and why it could not be written."""
    try:
        seen = _until((mark / "0").exists, within_s)
        if seen and not distributed.is_main():
            (mark / str(distributed.process_index())).write_text(token)
    except OSError as error:
        return False, str(error)
    return seen, ""


def _until(seen: Any, within_s: float) -> bool:
    end = time.monotonic() + within_s
    while not seen():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def _compare(what: str, values: Mapping[str, Any]) -> None:
    everybody = distributed.gather(what, dict(values))
    names = dict.fromkeys(name for found in everybody for name in found)
    differing = [name for name in names if any(found.get(name) != everybody[0].get(name) for found in everybody)]
    if differing:
        listed = "\n  ".join(f"{name}: {_listed([found.get(name) for found in everybody])}" for name in differing)
        raise UserError(
            f"the {len(everybody)} processes are not {what}; they differ in\n  {listed}\n"
            "make them equal, and start all of them again"
        )


def _listed(values: list[Any]) -> str:
    """`1e-05 on process 0 of 2 on a, 2e-05 on process 1 of 2 on b`; of many, the first of each value."""
    kinds = list({repr(value): value for value in values}.values())
    groups = []
    for kind in kinds:
        having = [number for number, value in enumerate(values) if value == kind]
        more = f" and {len(having) - 1} more" if having[1:] else ""
        groups.append(f"{'none' if kind is None else kind} ({distributed.described(having[0])}{more})")
    return ", ".join(groups)


@functools.cache
def _code() -> str:
    """A digest of this package's source files."""
    root = Path(iterpref_jax.__file__).parent
    files = sorted(root.rglob("*.py"))
    return _digest("".join(f"{path.relative_to(root)} {_digest(path.read_text())}\n" for path in files))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
