"""`iterpref train`: train, evaluate on held-out tasks, checkpoint. The same command resumes a stopped run.

On several hosts the same command runs on each of them. Exit status 75: stopped before its end, or another host
vanished; nothing is wrong here.
"""

from __future__ import annotations

from collections.abc import Sequence

from iterpref_jax import STARTED, settings
from iterpref_jax.cli import hosts, options
from iterpref_jax.cli.stored import to_store
from iterpref_jax.errors import GO_ON
from iterpref_jax.evaluate import report
from iterpref_jax.parallel import distributed
from iterpref_jax.progress import say
from iterpref_jax.train import compile_cache
from iterpref_jax.train.loop import train
from iterpref_jax.train.run import open_run
from iterpref_jax.train.startup import Startup


def main(argv: Sequence[str]) -> int:
    arguments = options.parser("train", __doc__)
    options.add_config(arguments)
    arguments.add_argument("--workdir", required=True, metavar="DIR", help="the run's folder, one for all hosts")
    hosts.add_flags(arguments)
    chosen, config = options.parse_with_config(arguments, argv)
    with hosts.joined("train", argv, chosen, config):
        compile_cache.enable(settings.read_section(config, "compile"))
        run = open_run(settings.read_run(config), chosen.workdir)
        outcome = train(run, to_store(config), Startup(STARTED))
        if not outcome.finished:
            say(f"stopped after step {outcome.step}; resume with: {hosts.command('train', argv)}")
        if distributed.is_main():
            say(f"report: {report.write(chosen.workdir)}")
        if outcome.finished:
            say(f"export it: iterpref export --workdir={chosen.workdir} --out=FOLDER")
    # A cluster that took the machine away would take 0 for the end of the run.
    return 0 if outcome.finished else GO_ON
