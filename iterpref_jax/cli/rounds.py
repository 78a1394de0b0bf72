"""`iterpref rounds`: the model writes and debugs programs, learns from its own pairs, and starts again, stronger."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from iterpref_jax import settings
from iterpref_jax.cli import options
from iterpref_jax.codeflow.interrupt import sigterm_interrupts
from iterpref_jax.errors import UserError
from iterpref_jax.progress import say
from iterpref_jax.rounds import run as running
from iterpref_jax.train.same_run import flat


def main(argv: Sequence[str]) -> None:
    arguments = options.parser("rounds", __doc__)
    options.add_config(arguments)
    arguments.add_argument(
        "--out", required=True, metavar="FOLDER", help="the rounds' folder; the same command resumes"
    )
    arguments.add_argument("--tasks", default="", metavar="FILE", help="tasks of your own, as for generate")
    chosen, overrides = options.parse(arguments, argv)
    config = settings.load_config(chosen.config, overrides)
    asked = settings.read_section(config, "rounds")
    # Every section that a stage will read is looked at before the first one begins.
    for section in ("sandbox", "serve", "compile"):
        settings.read_section(config, section)
    if chosen.tasks and not Path(chosen.tasks).is_file():
        raise UserError(f"--tasks={chosen.tasks}: there is no such file")
    generate, decode = settings.read_section(config, "generate"), settings.read_section(config, "decode")
    if not asked.serve and generate.max_tokens >= decode.context:
        raise UserError(
            f"generate.max_tokens = {generate.max_tokens} leaves no room for a prompt in decode.context = "
            f"{decode.context}, which holds both; raise decode.context, or lower generate.max_tokens"
        )
    model, _ = settings.read_model(config)
    if not model.path:
        raise UserError("model.path is empty: name the folder of the model that begins, --config.model.path=DIR")
    _check_training(config, 0 if chosen.tasks else generate.tasks, generate.max_refinements)
    words = (f"--config={chosen.config}", *(f"--config.{override}" for override in overrides))
    values = flat(settings.to_json(config))
    first = running.Asked(words=words, settings=values, model=model.path, seed=generate.seed, tasks=chosen.tasks)
    with sigterm_interrupts():
        running.run(options.local_path(chosen.out), first, asked)
    say(f"what every round came to: {options.local_path(chosen.out) / running.PAGE}")


def _check_training(config: Any, tasks: int, max_refinements: int) -> None:
    """Refuses what would end the first round behind its generation; `tasks` = 0: a file has them."""
    build = settings.read_section(config, "build")
    # Stands for the dataset that each round makes.
    config.data.path = "(of a round)"
    batch = settings.read_run(config).train.global_batch
    most = tasks * (max_refinements if build.pairs.choose == "all" else 1)
    if 0 < most < batch:
        raise UserError(
            f"generate.tasks = {tasks} tasks give at most {most} pairs a round (build.pairs.choose = "
            f"{build.pairs.choose!r}), fewer than one update of train.global_batch = {batch}: give it more tasks, or "
            "lower train.global_batch"
        )
