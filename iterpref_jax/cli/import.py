"""`iterpref import`: verified debugging histories from repairs, submissions, traces, problems and repositories."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from iterpref_jax import settings
from iterpref_jax.cli import options
from iterpref_jax.codeflow.imports import forms
from iterpref_jax.codeflow.imports.report import ImportReport
from iterpref_jax.codeflow.imports.run import TRAJECTORIES, Request, import_files
from iterpref_jax.errors import UserError
from iterpref_jax.progress import say


def main(argv: Sequence[str]) -> None:
    arguments = options.parser("import", __doc__)
    options.add_config(arguments)
    names = ", ".join(f"{form.name} ({form.meaning})" for form in forms.FORMS)
    arguments.add_argument(
        "--form", required=True, metavar="NAME", help=f"{names}, or {forms.AUTO}: guessed from the columns, and said"
    )
    arguments.add_argument(
        "--in",
        action="append",
        required=True,
        dest="paths",
        metavar="PATH",
        help="a file (CSV, JSON, JSONL, Parquet) or a repository; may be given again",
    )
    arguments.add_argument("--tests", default="", metavar="FILE", help="tests by task, where rows have none")
    arguments.add_argument("--setup", default="", metavar="FILE", help="Python that runs before every program")
    arguments.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="FIELD=NAME",
        help="a field under another name; may be repeated",
    )
    arguments.add_argument("--out", required=True, metavar="DIR", help="the folder to write; a second start goes on")
    chosen, config = options.parse_with_config(arguments, argv)
    request = Request(
        form=_form(chosen.form, chosen.paths),
        paths=chosen.paths,
        renamed=dict(map(_renamed, chosen.column)),
        tests=chosen.tests,
        setup=chosen.setup,
    )
    out = options.local_path(chosen.out)
    sections = (settings.read_section(config, name) for name in ("imports", "sandbox"))
    _say_report(import_files(request, out, *sections), out)


def _form(name: str, paths: Sequence[str]) -> forms.Form:
    if name != forms.AUTO:
        return forms.find_form(name)
    guessed = {path: forms.guess_form(path) for path in paths}
    if len({form.name for form, _ in guessed.values()}) > 1:
        found = ", ".join(f"{path}: {form.name}" for path, (form, _) in guessed.items())
        raise UserError(f"--form=auto: the files have different forms ({found}); import them one by one")
    for path, (form, why) in guessed.items():
        say(f"{path}: form {form.name}, {why}")
    return guessed[paths[0]][0]


def _renamed(text: str) -> tuple[str, str]:
    field, equals, column = text.partition("=")
    if not (field and equals and column):
        raise UserError(f"--column={text}: write --column=FIELD=NAME, such as --column=code=source_text")
    return field, column


def _say_report(report: ImportReport, out: Path) -> None:
    dropped = ", ".join(f"{reason} {count}" for reason, count in report.dropped.most_common()) or "none"
    say(f"{report.trajectories} trajectories of {report.candidates} candidates; dropped: {dropped}")
    if report.differed:
        compared = report.agreed + report.differed
        say(f"{report.differed} of {compared} versions got another verdict than the recorded one")
    say(f"{out / TRAJECTORIES} (report: {out / 'report.md'})")
