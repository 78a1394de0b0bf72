"""`iterpref reference`: reference log-probs of a dataset, ahead of training. Exit statuses are those of `train`."""

from __future__ import annotations

from collections.abc import Sequence

from iterpref_jax import settings
from iterpref_jax.cli import hosts, options
from iterpref_jax.errors import GO_ON, UserError
from iterpref_jax.progress import say
from iterpref_jax.train import alike, compile_cache
from iterpref_jax.train.reference_pass import ensure_reference
from iterpref_jax.train.run import open_run
from iterpref_jax.train.signals import stop_requested


def main(argv: Sequence[str]) -> int:
    arguments = options.parser("reference", __doc__)
    options.add_config(arguments)
    arguments.add_argument("--workdir", required=True, metavar="DIR", help="the run's folder (reference/ lies in it)")
    hosts.add_flags(arguments)
    chosen, config = options.parse_with_config(arguments, argv)
    with hosts.joined("reference", argv, chosen, config):
        compile_cache.enable(settings.read_section(config, "compile"))
        run = open_run(settings.read_run(config), chosen.workdir)
        if not run.settings.objective.uses_reference:
            raise UserError(f"recipe {run.settings.objective.recipe!r} with this link needs no reference log-probs")
        alike.check_inputs(run)
        with stop_requested() as should_stop:
            finished = ensure_reference(run, None, should_stop)
        done = f"reference log-probs: {run.reference_path()}"
        say(done if finished else "stopped; the same command goes on from here")
    return 0 if finished else GO_ON
