"""An import from files to a folder: trajectories, a report, and the verdicts that a second start goes on from."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from iterpref_jax.atomic import replace_text
from iterpref_jax.codeflow import records, runs
from iterpref_jax.codeflow.endpoint import open_journal
from iterpref_jax.codeflow.imports import git_repository, report
from iterpref_jax.codeflow.imports.forms import Form
from iterpref_jax.codeflow.imports.judging import judge_items
from iterpref_jax.codeflow.imports.report import ImportReport
from iterpref_jax.codeflow.imports.source import ImportSettings, Source
from iterpref_jax.codeflow.imports.task_tests import read_tasks
from iterpref_jax.codeflow.interrupt import keeping
from iterpref_jax.codeflow.records import Trajectory
from iterpref_jax.codeflow.sandbox import SandboxSettings, open_sandbox
from iterpref_jax.errors import UserError
from iterpref_jax.progress import progress, say

TRAJECTORIES = "trajectories.jsonl"
PLAN = "import.json"
JOURNAL = "journal.sqlite"
_BLOCK = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asks for: `paths` in a form, columns of other names, a file of tests, code that runs before."""

    form: Form
    paths: Sequence[str]
    renamed: Mapping[str, str]
    tests: str
    setup: str


def import_files(
    request: Request, out: pathlib.Path, settings: ImportSettings, sandbox_settings: SandboxSettings
) -> ImportReport:
    """Writes `trajectories.jsonl`, `report.json` and `report.md` into `out`, and goes on from the verdicts there.

    Raises UserError for bad input, an `out` of another import, or another process at work in it. A stop by signal is a
    KeyboardInterrupt; what was judged is kept.
    """
    source = _open(request, settings)
    # All input is read once before the long work, so that a bad row ends the import now.
    total = sum(1 for _ in request.form.read(source))
    plan = _plan(request, settings, sandbox_settings)
    out.mkdir(parents=True, exist_ok=True)
    with open_journal(out / JOURNAL) as journal, keeping(f"the verdicts are kept in {out / JOURNAL}"):
        _start_or_continue(out, plan, journal.counts().get(runs.KIND, 0))
        found = ImportReport()
        with open_sandbox(sandbox_settings) as sandbox, progress("judging", total, "candidates") as advance:
            # A batch may hold hundreds of runs.
            judge = runs.Judge(sandbox, journal, sandbox_settings, on_run=lambda: advance(0, _note(judge, found)))
            judged = judge_items(request.form.read(source), judge, found)
            records.write_trajectories(out / TRAJECTORIES, _kept(judged, lambda: advance(1, _note(judge, found))))
        report.write(out, report.as_json(found, {"form": request.form.name, "inputs": plan["inputs"]}))
        say(f"{judge.ran} runs, {judge.known} known from before")
    return found


def _open(request: Request, settings: ImportSettings) -> Source:
    form = request.form
    if request.tests and not form.takes_tests:
        raise UserError(f"--tests={request.tests}: the form {form.name} brings its own tests; leave --tests out")
    if request.renamed and not form.fields:
        raise UserError(f"--column: the form {form.name} has no columns; leave --column out")
    return Source(
        paths=request.paths,
        renamed=request.renamed,
        tasks=read_tasks(request.tests, settings.max_cases) if request.tests else {},
        setup=_text(request.setup),
        settings=settings,
    )


def _text(path: str) -> str:
    if not path:
        return ""
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--setup={path}: wanted a file of Python that runs before every program: {error}") from error
    return text.rstrip("\n") + "\n"


def _kept(judged: Iterable[list[Trajectory]], on_item: Callable[[], None]) -> Iterator[Trajectory]:
    for trajectories in judged:
        yield from trajectories
        on_item()


def _note(judge: runs.Judge, found: ImportReport) -> str:
    return f"{judge.ran} runs, {found.trajectories} trajectories"


def _plan(request: Request, settings: ImportSettings, sandbox_settings: SandboxSettings) -> dict[str, Any]:
    """Everything that the trajectories depend on; places of files and the number of workers do not count."""
    files = [*request.paths, *filter(None, (request.tests, request.setup))]
    return {
        "form": request.form.name,
        "inputs": [f"{pathlib.Path(path).resolve().name}: {_fingerprint(path)}" for path in files],
        "columns": dict(request.renamed),
        "imports": dataclasses.asdict(settings),
        "sandbox": sandbox_settings.that_matter(),
    }


def _fingerprint(path: str) -> str:
    if pathlib.Path(path).is_dir():
        return f"commit {git_repository.head(path)}"
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file; check the path") from error
    return f"sha256 {digest.hexdigest()}"


def _start_or_continue(out: pathlib.Path, plan: dict[str, Any], known: int) -> None:
    path = out / PLAN
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = sorted(name for name in plan if before.get(name) != plan[name])
        if changed:
            raise UserError(
                f"{out} holds another import (changed: {', '.join(changed)}); remove it or name another folder"
            )
        say(f"going on in {out}: {known} verdicts are there")
        return
    if (out / TRAJECTORIES).exists():
        raise UserError(f"{out} holds {TRAJECTORIES}, but not of an import; name another folder")
    replace_text(path, json.dumps(plan, indent=1) + "\n")
