"""`iterpref export`: a checkpoint as a Hugging Face folder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from iterpref_jax import settings
from iterpref_jax.cli import options
from iterpref_jax.errors import UserError
from iterpref_jax.parallel.mesh import ALL_DEVICES
from iterpref_jax.progress import say
from iterpref_jax.train.export import export
from iterpref_jax.train.run import open_run


def main(argv: Sequence[str]) -> None:
    arguments = options.parser("export", __doc__)
    arguments.add_argument("--workdir", required=True, metavar="DIR", help="the run's folder")
    arguments.add_argument("--out", required=True, metavar="DIR", help="the folder to write")
    arguments.add_argument("--step", type=int, help="the checkpoint to export (default: the newest)")
    arguments.add_argument(
        "--dtype", default="", choices=["float32", "bfloat16", "float16"], help="default: as trained"
    )
    arguments.add_argument("--max_shard_gb", type=float, default=5.0, help="largest weight file in GB (default: 5)")
    chosen, overrides = options.parse(arguments, argv)
    if overrides:
        raise UserError(f"--config.{overrides[0]}: export reads the run's own config.json and takes no overrides")
    stored = Path(chosen.workdir) / "config.json"
    if not stored.exists():
        raise UserError(f"{stored} does not exist: --workdir must be a folder that `iterpref train` wrote")
    stored_settings = settings.read_run(settings.from_json(json.loads(stored.read_text())))
    # The devices of today, not those of the run.
    run = open_run(dataclasses.replace(stored_settings, mesh=ALL_DEVICES), chosen.workdir, training=False)
    step = export(run, chosen.out, step=chosen.step, dtype=chosen.dtype, max_shard_gb=chosen.max_shard_gb)
    say(f"step {step} as a Hugging Face folder: {chosen.out}")
