"""A run that `iterpref train` wrote, opened again by the commands that come after training."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

from etils import epath

from iterpref_jax import settings
from iterpref_jax.errors import UserError
from iterpref_jax.parallel.mesh import ALL_DEVICES
from iterpref_jax.train.remote import check_scheme
from iterpref_jax.train.restore import BEST
from iterpref_jax.train.run import Run, open_run


def add_step(arguments: argparse.ArgumentParser, what: str) -> None:
    """Adds --step: a number, or the checkpoint that the run kept as its best."""
    arguments.add_argument(
        "--step", type=_step, metavar="N|best", help=f"{what}: its number, or best (default: the newest)"
    )


def _step(text: str) -> int | str:
    if text == BEST or text.isdigit():
        return text if text == BEST else int(text)
    raise argparse.ArgumentTypeError(f"expected a number or {BEST}, got {text!r}")


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


def stored_run(workdir: str) -> Run:
    """Opens the run of a folder with its own configuration, on the devices of today.

    Raises:
        UserError: a folder that no run has written, or what the run was made of is gone.
    """
    read = settings.read_run(stored_config(workdir))
    return open_run(dataclasses.replace(read, mesh=ALL_DEVICES), workdir, training=False)
