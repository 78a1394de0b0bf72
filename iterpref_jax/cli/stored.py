"""A run that `iterpref train` wrote, opened again by the commands that come after training."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Sequence
from typing import Any

from etils import epath

from iterpref_jax import settings
from iterpref_jax.errors import UserError
from iterpref_jax.parallel.mesh import ALL_DEVICES
from iterpref_jax.train.remote import check_scheme
from iterpref_jax.train.restore import BEST
from iterpref_jax.train.run import Run, RunSettings, open_run

# What may lie elsewhere than when the run was made.
PLACES = ("data.path", "model.path")
# Words that a run's own configuration may be opened with for sampling: besides, its devices, and how it computes.
OF_TODAY = ("mesh", "model.compute", *PLACES)


def add_step(arguments: argparse.ArgumentParser, what: str) -> None:
    """Adds --step: a number, or the checkpoint that the run kept as its best."""
    arguments.add_argument(
        "--step", type=_step, metavar="N|best", help=f"{what}: its number, or best (default: the newest)"
    )


def _step(text: str) -> int | str:
    if text == BEST or text.isdigit():
        return text if text == BEST else int(text)
    raise argparse.ArgumentTypeError(f"expected a number or {BEST}, got {text!r}")


def to_store(config: Any) -> dict[str, Any]:
    """Returns a configuration as a run keeps it: JSON, and local folders by whole paths, to be opened from anywhere."""
    content = settings.to_json(config)
    for section in (content["data"], content["model"]):
        # What is no path here is the name of a hub's repository or a bucket's address.
        if section["path"] and os.path.exists(section["path"]):
            section["path"] = os.path.abspath(section["path"])
    return content


def stored_config(workdir: str) -> Any:
    """Returns the configuration that a run was started with.

    Raises:
        UserError: a folder that no run has written.
    """
    check_scheme(workdir)
    stored = epath.Path(workdir) / "config.json"
    if not stored.exists():
        raise UserError(f"{stored} does not exist: --workdir must be a folder that `iterpref train` wrote")
    return settings.from_json(json.loads(stored.read_text()))


def stored_run(workdir: str, overrides: Sequence[str] = ()) -> Run:
    """Opens the run of a folder with its own configuration and these overrides, on the devices of today.

    Raises:
        UserError: a folder that no run has written, or what the run was made of is gone.
    """
    read = settings.read_run(settings.override(stored_config(workdir), overrides))
    check_places(read, workdir)
    return open_run(on_devices_of_today(read, overrides), workdir, training=False)


def check_places(read: RunSettings, workdir: str) -> None:
    """Raises UserError, with what to say, if the dataset or the model of a run is not where it was."""
    for name, path in zip(PLACES, (read.data.path, read.model.path), strict=True):
        # A relative model.path may be a hub's name, which is looked for when it is opened.
        is_place = name == "data.path" or os.path.isabs(path)
        if is_place and not epath.Path(path).exists():
            raise UserError(
                f"{path} is not there: it is {name} of the run {workdir}; say where it is now, --config.{name}=DIR"
            )


def on_devices_of_today(read: RunSettings, overrides: Sequence[str]) -> RunSettings:
    """Returns a run's settings with the mesh of the overrides, or all devices: its own was made for those of then."""
    return read if any(word.startswith("mesh.") for word in overrides) else dataclasses.replace(read, mesh=ALL_DEVICES)


def of_run(overrides: Sequence[str]) -> list[str]:
    """Returns those overrides of a command with --workdir that say how the run's model is opened.

    Raises:
        UserError: one that would make another model of it.
    """
    found = []
    for word in overrides:
        name = word.partition("=")[0]
        if any(name == of_today or name.startswith(f"{of_today}.") for of_today in OF_TODAY):
            found.append(word)
        elif name.startswith("model."):
            raise UserError(
                f"--config.{word} has no effect with --workdir: the model is the run's own; only "
                f"{', '.join(OF_TODAY)} can be other than its own"
            )
    return found
