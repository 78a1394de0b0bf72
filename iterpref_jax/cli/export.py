"""`iterpref export`: a checkpoint as a Hugging Face folder.

A dataset or base model that has moved is named with --config.data.path=DIR, --config.model.path=DIR.
"""

from __future__ import annotations

from collections.abc import Sequence

from iterpref_jax.cli import options
from iterpref_jax.cli.stored import PLACES, add_step, stored_run
from iterpref_jax.errors import UserError
from iterpref_jax.progress import say
from iterpref_jax.train.export import export, export_adapters


def main(argv: Sequence[str]) -> None:
    arguments = options.parser("export", __doc__)
    arguments.add_argument("--workdir", required=True, metavar="DIR", help="the run's folder")
    arguments.add_argument("--out", required=True, metavar="DIR", help="the folder to write")
    add_step(arguments, "the checkpoint to export")
    arguments.add_argument(
        "--dtype", default="", choices=["float32", "bfloat16", "float16"], help="default: as trained"
    )
    arguments.add_argument("--max_shard_gb", type=float, default=5.0, help="largest weight file in GB (default: 5)")
    arguments.add_argument("--adapters", action="store_true", help="write the LoRA adapters alone, as a PEFT folder")
    chosen, overrides = options.parse(arguments, argv)
    for word in overrides:
        if word.partition("=")[0] not in PLACES:
            raise UserError(
                f"--config.{word}: export reads the run's own config.json; only {' and '.join(PLACES)} can be other, "
                "where its files lie now"
            )
    options.local_path(chosen.out)
    run = stored_run(chosen.workdir, overrides)
    if chosen.adapters:
        if chosen.dtype:
            raise UserError("--dtype has no effect with --adapters: they are written as they were trained, float32")
        step = export_adapters(run, chosen.out, step=chosen.step)
        say(f"the adapters of step {step} as a PEFT folder: {chosen.out}")
        return
    step = export(run, chosen.out, step=chosen.step, dtype=chosen.dtype, max_shard_gb=chosen.max_shard_gb)
    say(f"step {step} as a Hugging Face folder: {chosen.out}")
