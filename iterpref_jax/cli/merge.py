"""`iterpref merge`: one folder from the folders of `iterpref generate --shard=I/N`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from iterpref_jax.cli import options
from iterpref_jax.codeflow.generate import report
from iterpref_jax.codeflow.generate.merge import merge
from iterpref_jax.codeflow.interrupt import sigterm_interrupts
from iterpref_jax.errors import UserError
from iterpref_jax.progress import say


def main(argv: Sequence[str]) -> None:
    arguments = options.parser("merge", __doc__)
    arguments.add_argument("folders", nargs="+", metavar="FOLDER", help="the folders of all shards")
    arguments.add_argument("--out", required=True, metavar="FOLDER", help="the folder to write")
    chosen, overrides = options.parse(arguments, argv)
    if overrides:
        raise UserError("merge reads no config")
    out = options.local_path(chosen.out)
    with sigterm_interrupts():
        made = merge([Path(folder) for folder in chosen.folders], out)
    say(f"{made['ends'].get('paired', 0)} trajectories, {made['pairs']} pairs, report: {out / report.PAGE}")
