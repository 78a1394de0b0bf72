"""`iterpref inject`: debugging histories from code with tests; bugs are stacked, undone one by one, and verified."""

from __future__ import annotations

import collections
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from iterpref_jax import settings
from iterpref_jax.cli import options
from iterpref_jax.codeflow import records, sources
from iterpref_jax.codeflow.endpoint import open_journal
from iterpref_jax.codeflow.inject import InjectReport, Task, inject
from iterpref_jax.codeflow.interrupt import keeping
from iterpref_jax.codeflow.runs import KIND, Judge
from iterpref_jax.codeflow.sandbox import open_sandbox
from iterpref_jax.errors import UserError
from iterpref_jax.progress import progress, say

NAMED_SOURCES = {"human_eval": sources.human_eval_tasks, "stdlib": sources.stdlib_tasks}


def main(argv: Sequence[str]) -> None:
    arguments = options.parser("inject", __doc__)
    options.add_config(arguments)
    arguments.add_argument(
        "--source",
        action="append",
        required=True,
        metavar="NAME_OR_FILE",
        help=f"{', '.join(NAMED_SOURCES)}, or a JSONL file of tasks with code and tests; may be given again",
    )
    arguments.add_argument("--out", required=True, metavar="FILE", help="the trajectories file to write (JSONL)")
    chosen, config = options.parse_with_config(arguments, argv)
    out = options.local_path(chosen.out)
    tasks = list(itertools.chain.from_iterable(map(_tasks, chosen.source)))
    for task_id, count in collections.Counter(task.task_id for task in tasks).items():
        if count > 1:
            raise UserError(f"the task_id {task_id!r} is of {count} tasks of the sources; give every task its own name")
    _say_report(_written(tasks, config, out), out)


def _written(tasks: Sequence[Task], config: Any, out: Path) -> InjectReport:
    """Writes the histories; verdicts are kept beside them until all are there, so that a stop loses none."""
    report, kept, limits = InjectReport(), out.with_suffix(".journal.sqlite"), settings.read_section(config, "sandbox")
    about = settings.read_section(config, "inject")
    with (
        open_sandbox(limits) as sandbox,
        open_journal(kept) as journal,
        keeping(f"the verdicts are kept in {kept}"),
        progress("injecting bugs", len(tasks), "tasks") as advance,
    ):
        judge = Judge(sandbox, journal, limits)
        if known := journal.counts().get(KIND, 0):
            say(f"going on: {known} verdicts are there")
        found = inject(
            tasks,
            about,
            judge,
            report=report,
            on_task=lambda task, histories: advance(1, f"{report.trajectories} histories"),
        )
        records.write_trajectories(out, found)
    # The next start may find other packages for its programs.
    for file in (kept, kept.with_name(kept.name + ".lock")):
        file.unlink()
    return report


def _tasks(source: str) -> Iterator[Task]:
    if source in NAMED_SOURCES:
        return NAMED_SOURCES[source]()
    if Path(source).exists():
        return sources.file_tasks(source)
    raise UserError(f"--source {source!r} is neither a file nor one of {', '.join(NAMED_SOURCES)}")


def _say_report(report: InjectReport, out: Path) -> None:
    path = out.with_suffix(".report.json")
    path.write_text(json.dumps(vars(report), indent=2, sort_keys=True) + "\n")
    used = report.tasks - len(report.skipped)
    say(f"{report.trajectories} histories with {report.versions} versions from {used} of {report.tasks} tasks: {out}")
    say(f"mutants by kind, endings, skipped tasks with reasons: {path}")
