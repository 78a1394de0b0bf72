"""A run that `iterpref train` wrote, opened again by the commands that come after training."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from iterpref_jax import settings
from iterpref_jax.errors import UserError
from iterpref_jax.parallel.mesh import ALL_DEVICES
from iterpref_jax.train.run import Run, open_run


def stored_run(workdir: str) -> Run:
    """Opens the run of a folder with its own configuration, on the devices of today.

    Raises:
        UserError: a folder that no run has written, or what the run was made of is gone.
    """
    stored = Path(workdir) / "config.json"
    if not stored.exists():
        raise UserError(f"{stored} does not exist: --workdir must be a folder that `iterpref train` wrote")
    read = settings.read_run(settings.from_json(json.loads(stored.read_text())))
    return open_run(dataclasses.replace(read, mesh=ALL_DEVICES), workdir, training=False)
