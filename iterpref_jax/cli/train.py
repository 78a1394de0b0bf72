"""`iterpref train`: train, evaluate on held-out tasks, checkpoint. The same command resumes a stopped run."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from iterpref_jax import STARTED, settings
from iterpref_jax.cli import options
from iterpref_jax.evaluate import report
from iterpref_jax.progress import say
from iterpref_jax.train import compile_cache
from iterpref_jax.train.loop import train
from iterpref_jax.train.run import open_run
from iterpref_jax.train.startup import Startup


def main(argv: Sequence[str]) -> None:
    arguments = options.parser("train", __doc__)
    options.add_config(arguments)
    arguments.add_argument("--workdir", required=True, metavar="DIR", help="the run's folder")
    chosen, config = options.parse_with_config(arguments, argv)
    compile_cache.enable(settings.read_section(config, "compile"))
    run = open_run(settings.read_run(config), chosen.workdir)
    outcome = train(run, settings.to_json(config), Startup(STARTED))
    if outcome.finished:
        say(f"report: {report.write(chosen.workdir)}")
        say(f"export it: iterpref export --workdir={chosen.workdir} --out=FOLDER")
    else:
        say(f"stopped after step {outcome.step}; resume with: iterpref train {shlex.join(argv)}")
