"""`iterpref generate`: a model behind an endpoint writes tasks, programs and tests, and debugs until the tests pass."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

from iterpref_jax import settings
from iterpref_jax.cli import options
from iterpref_jax.codeflow.endpoint import open_journal
from iterpref_jax.codeflow.generate import report
from iterpref_jax.codeflow.generate.outcome import OPEN
from iterpref_jax.codeflow.generate.run import JOURNAL, PAIRS, Run
from iterpref_jax.codeflow.generate.settings import PairingSettings, RunSettings
from iterpref_jax.codeflow.generate.verdicts import Judge
from iterpref_jax.codeflow.interrupt import sigterm_interrupts
from iterpref_jax.codeflow.sandbox import SandboxSettings, open_sandbox
from iterpref_jax.errors import UserError
from iterpref_jax.progress import say


def main(argv: Sequence[str]) -> None:
    chosen, config = options.parse_with_config(_arguments(), argv)
    build = settings.read_section(config, "build")
    asked = RunSettings(
        generate=settings.read_section(config, "generate"),
        pairing=PairingSettings(pairs=build.pairs, filters=build.filters, focus=build.focus),
        samples=chosen.from_samples,
        shard=chosen.shard,
    )
    folder, limits = options.local_path(chosen.out), settings.read_section(config, "sandbox")
    with (
        sigterm_interrupts(),
        open_journal(folder / JOURNAL) as journal,
        _judge(limits, chosen.ray) as (sandbox, limits),
    ):
        run = Run(folder, asked, settings.read_section(config, "endpoint"), limits, journal, sandbox)
        made = run.go(chosen.tasks)
    say(f"{made['ends'].get('paired', 0)} trajectories, {made['pairs']} pairs: {folder / PAIRS}")
    if left := sum(made["ends"].get(end, 0) for end in OPEN):
        say(f"{left} tasks failed for the endpoint's or the sandbox's sake: the same command tries them again")
    say(f"how tasks ended, pass rates, calls, cost: {folder / report.PAGE}")


@contextlib.contextmanager
def _judge(limits: SandboxSettings, ray: str) -> Iterator[tuple[Judge, SandboxSettings]]:
    """Opens what judges programs; with it come the limits, whose `workers` are those of the whole cluster."""
    if not ray:
        with open_sandbox(limits) as sandbox:
            yield sandbox, limits
        return
    from iterpref_jax.codeflow.sandbox.cluster import open_cluster

    with open_cluster(limits, ray) as cluster:
        yield cluster, dataclasses.replace(limits, workers=cluster.workers)


def _arguments() -> argparse.ArgumentParser:
    arguments = options.parser("generate", __doc__)
    options.add_config(arguments)
    arguments.add_argument("--out", required=True, metavar="FOLDER", help="the run's folder; the same command resumes")
    arguments.add_argument(
        "--tasks",
        default="",
        metavar="FILE",
        help="tasks of your own (task_id, instruction, and test_code if you have it)",
    )
    arguments.add_argument(
        "--from-samples", type=int, default=0, metavar="N", help="pairs from N programs a task instead of debugging one"
    )
    arguments.add_argument(
        "--shard", type=shard, default=(0, 1), metavar="I/N", help="only these tasks: one of N parts, I from 0"
    )
    arguments.add_argument(
        "--ray", default="", metavar="ADDRESS", help="run programs in a Ray cluster: local, auto, or HOST:PORT"
    )
    return arguments


def shard(text: str) -> tuple[int, int]:
    """Returns (number, count) of "I/N"."""
    number, slash, count = text.partition("/")
    if not (slash and number.isdigit() and count.isdigit()):
        raise UserError(f"--shard: wanted I/N, such as 0/8, got {text!r}")
    return int(number), int(count)
