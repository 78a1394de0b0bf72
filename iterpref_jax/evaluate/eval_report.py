"""`report.md` and `report.html` of one run of `iterpref eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from iterpref_jax.evaluate import eval_page
from iterpref_jax.evaluate.evaluation import verdicts_by_task
from iterpref_jax.evaluate.samples import PAGE, REPORT, Verdict
from iterpref_jax.evaluate.score_text import made_with, percent, tasks
from iterpref_jax.evaluate.tasks import Benchmark

FAILED_SHOWN = 20


def write(folder: Path, found: dict[str, Any], benchmark: Benchmark, verdicts: dict[tuple[str, int], Verdict]) -> Path:
    """Writes both reports into the run's folder; returns the path of the page."""
    by_task = verdicts_by_task(benchmark, verdicts.values())
    (folder / REPORT).write_text(markdown(found, by_task, benchmark), encoding="utf-8")
    page = folder / PAGE
    page.write_text(eval_page.render(found, by_task, benchmark), encoding="utf-8")
    return page


def markdown(found: dict[str, Any], by_task: dict[str, list[Verdict]], benchmark: Benchmark) -> str:
    """Returns the report as Markdown."""
    settings = "".join(f"| {name} | {_cell(value)} |\n" for name, value in made_with(found).items())
    head = (
        f"# {found['benchmark']} ({found['version']})\n\n{tasks(found)}, {found['samples']} samples.\n\n"
        f"| score | 95% interval over tasks |\n|---|---|\n{_score_rows(found)}\n"
    )
    return "\n".join(
        [
            head,
            f"| made with | |\n|---|---|\n{settings}",
            _left_out(found),
            _errors(found),
            _failed(by_task),
            _exceptions(benchmark),
        ]
    )


def _score_rows(found: dict[str, Any]) -> str:
    rows = [f"| {score['suite']} pass@{score['k']} | {percent(score)} |\n" for score in found["scores"]]
    rows += [
        f"| {score['tag']} ({score['tasks']} tasks), {score['suite']} pass@1 | {percent(score)} |\n"
        for score in found["scores_by_tag"]
    ]
    return "".join(rows)


def _left_out(found: dict[str, Any]) -> str:
    if not found["left_out"]:
        return ""
    rows = [
        f"| {_cell(name)} | {why['status']} | {_cell(why['error_type'])}: {_cell(why['message'])[:200]} |\n"
        for name, why in found["left_out"].items()
    ]
    head = "| task | verdict | error |\n|---|---|---|\n"
    return f"## Left out: the published solution of {len(rows)} tasks does not pass here\n\n{head}{''.join(rows)}"


def _errors(found: dict[str, Any]) -> str:
    if not found["errors"]:
        return "## Errors\n\nEvery sample passed.\n"
    rows = [
        f"| {_cell(each['name'])} | {each['tasks']} | {each['samples']} | {each['tests']} | "
        f"{_cell(each['message'])} |\n"
        for each in found["errors"]
    ]
    head = "| class | tasks | samples | tests | commonest message |\n|---|---|---|---|---|\n"
    return f"## Errors\n\n{found['errors_counted']}.\n\n{head}{''.join(rows)}"


def _failed(by_task: dict[str, list[Verdict]]) -> str:
    failed = [verdict for found in by_task.values() for verdict in found if verdict.judged.failed is not None][
        :FAILED_SHOWN
    ]
    rows = [
        f"| {_cell(verdict.task_id)} | {verdict.sample} | {outcome.suite} | {outcome.status} | "
        f"{_cell(outcome.error_type)}: {_cell(outcome.message)[:200]} |\n"
        for verdict in failed
        if (outcome := verdict.judged.failed) is not None
    ]
    if not rows:
        return ""
    head = "| task | sample | suite | verdict | error |\n|---|---|---|---|---|\n"
    return f"## The first {len(rows)} failures (report.html has all)\n\n{head}{''.join(rows)}"


def _exceptions(benchmark: Benchmark) -> str:
    if not benchmark.exceptions:
        return ""
    rows = [f"- {name}: {why}\n" for name, why in benchmark.exceptions.items()]
    return "Tasks whose published solution may not pass:\n\n" + "".join(rows)


def _cell(text: str) -> str:
    """Text of programs in a cell of a table: one line, no column of its own, no markup."""
    line = " ".join(text.split())
    return line.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "\\`")
