"""`iterpref sweep`: an ablation: every variant with every seed, trained, evaluated on held-out pairs, in one table.

The same command resumes: finished runs are not run again, and one that was stopped goes on from its checkpoint.
`--config.KEY=VALUE` overrides the base config of all variants.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Sequence
from pathlib import Path

from iterpref_jax import settings
from iterpref_jax.cli import options
from iterpref_jax.errors import UserError, did_you_mean
from iterpref_jax.progress import say
from iterpref_jax.sweep import comparison, planning, report, running
from iterpref_jax.sweep.planning import Inputs, Job, Loaded, Planner


def main(argv: Sequence[str]) -> int:
    chosen, given = options.parse(_arguments(), argv)
    planner = make_planner(chosen.config, chosen.workdir, chosen.input, given)
    jobs = planner.jobs()
    asked, baseline = _only(jobs, chosen.only), _baseline(jobs, chosen.baseline)
    if chosen.print_jobs:
        if chosen.baseline:
            raise UserError("--baseline has no effect with --print-jobs, which makes no table; leave it out")
        print("\n".join(planning.script(asked)))
        return 0
    running.check(jobs)
    errors, ended = running.run(asked)
    table = _report(planner.workdir, Path(chosen.config.partition(":")[0]), jobs, baseline)
    if not ended:
        say(f"stopped; the same command goes on. So far: {table}")
        return 130
    if errors:
        raise UserError(
            f"{len(errors)} of {len(asked)} runs failed ({', '.join(errors)}); the same command tries again"
        )
    say(f"table: {table}")
    return 0


def make_planner(config: str, workdir: str, inputs: Sequence[str], given: Sequence[str]) -> Planner:
    """Returns what makes the runs of a sweep file; `inputs` are words of --input, `given` overrides of the base."""
    sweep = settings.read_sweep(settings.load_config(config))
    spec = _absolute(Path(config.partition(":")[0]).parent, sweep.config)

    def load(words: Sequence[str]) -> Loaded:
        config = settings.load_config(spec, words)
        settings.read_section(config, "build")
        return Loaded(settings.to_json(config), settings.read_run(config))

    return Planner(sweep, spec, comparison.folder_of(workdir), _inputs(inputs, given), tuple(given), load)


def _arguments() -> argparse.ArgumentParser:
    arguments = options.parser("sweep", __doc__)
    options.add_config(arguments)
    arguments.add_argument("--workdir", required=True, metavar="DIR", help="the folder of datasets, runs and table")
    arguments.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="[NAME=]FILE",
        help="build datasets from these trajectories or pairs (default: config.data.path); may be given again",
    )
    arguments.add_argument(
        "--only", action="append", default=[], metavar="VARIANT[/SEED]", help="run these alone; may be given again"
    )
    arguments.add_argument(
        "--baseline", default="", metavar="VARIANT", help="what the table compares with (default: the first variant)"
    )
    arguments.add_argument(
        "--print-jobs", action="store_true", help="print the commands as a shell script, for a cluster, and run nothing"
    )
    return arguments


def _absolute(folder: Path, spec: str) -> str:
    file, colon, arg = spec.partition(":")
    return f"{(folder / file).resolve()}{colon}{arg}"


def _inputs(words: Sequence[str], given: Sequence[str]) -> Inputs | None:
    if not words:
        return None
    if any(word.startswith("data.path=") for word in given):
        raise UserError(
            "--config.data.path has no effect with --input: the sweep builds its datasets; give one of them"
        )
    files: dict[str, tuple[str, ...]] = {}
    for word in words:
        name, equals, file = word.partition("=")
        name, file = (name, file) if equals and not Path(word).exists() else ("", word)
        files[name] = (*files.get(name, ()), str(Path(file).resolve()))
    return Inputs(files)


def _only(jobs: Sequence[Job], names: Sequence[str]) -> list[Job]:
    for name in names:
        known = {job.variant for job in jobs} | {f"{job.variant}/{job.seed}" for job in jobs}
        if name not in known:
            raise UserError(f"--only={name}: there is no such variant or run{did_you_mean(name, known)}")
    return [job for job in jobs if not names or {job.variant, f"{job.variant}/{job.seed}"} & set(names)]


def _baseline(jobs: Sequence[Job], name: str) -> str:
    known = [job.variant for job in jobs]
    if name and name not in known:
        raise UserError(f"--baseline={name}: there is no such variant{did_you_mean(name, known)}")
    return name or known[0]


def _report(workdir: Path, file: Path, jobs: Sequence[Job], baseline: str) -> Path:
    found = comparison.compare(jobs, [job for job in jobs if running.is_finished(job)], baseline)
    return report.write(workdir, file.stem, ast.get_docstring(ast.parse(file.read_text())) or "", found)
