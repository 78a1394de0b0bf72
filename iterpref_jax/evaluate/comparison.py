"""Several runs of one benchmark side by side: what separates each from the first, and which tasks flipped."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from iterpref_jax.errors import UserError
from iterpref_jax.evaluate import results, scores
from iterpref_jax.evaluate.score_text import percent
from iterpref_jax.evaluate.scores import Difference

# Of the bootstrap.
DRAWS, SEED = 10_000, 0
FLIPPED_SHOWN = 40


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A run in one suite; `difference` is from the first run (None for that one itself)."""

    run: str
    suite: str
    score: dict[str, Any]
    difference: Difference | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Runs by folder, their rows, and the settings in which they differ ({setting: a value a run})."""

    benchmark: str
    tasks: int
    runs: tuple[str, ...]
    rows: tuple[Row, ...]
    settings: dict[str, tuple[str, ...]]
    passed: dict[str, tuple[float, ...]]  # of the last suite: {task: pass@1 a run}, only where runs differ


def compare(folders: Sequence[str]) -> Comparison:
    """Reads the results of runs and compares each with the first.

    Raises:
        UserError: a folder without results, or runs of other tasks: a paired test needs the same.
    """
    found = [results.read(folder) for folder in folders]
    first = found[0]
    for folder, other in zip(folders, found, strict=True):
        if other["benchmark"] != first["benchmark"] or other["pass_at_1"].keys() != first["pass_at_1"].keys():
            raise UserError(
                f"{folder} is of {other['benchmark']}, {folders[0]} of {first['benchmark']}: compare equals"
            )
        for suite, tasks in first["pass_at_1"].items():
            if other["pass_at_1"][suite].keys() != tasks.keys():
                raise UserError(f"{folder} and {folders[0]} were scored on other tasks; evaluate both on the same")
    suites = list(first["pass_at_1"])
    last = [each["pass_at_1"][suites[-1]] for each in found]
    return Comparison(
        benchmark=first["benchmark"],
        tasks=first["tasks"],
        runs=tuple(folders),
        rows=tuple(_row(folders, found, suite, number) for suite in suites for number in range(len(found))),
        settings=_different(found),
        passed={task: values for task in last[0] if len(set(values := tuple(each[task] for each in last))) > 1},
    )


def lines(comparison: Comparison) -> list[str]:
    """Returns one line a run and suite, as it is printed."""
    return [f"{row.run}: {row.suite} pass@1 {percent(row.score)}{_less(row)}" for row in comparison.rows]


def markdown(comparison: Comparison) -> str:
    """Returns the comparison as Markdown."""
    head = f"# {comparison.benchmark}: {len(comparison.runs)} runs, {comparison.tasks} tasks\n\n"
    rows = "".join(
        f"| {row.run} | {row.suite} | {percent(row.score)} | {_cells(row.difference)} |\n" for row in comparison.rows
    )
    table = (
        "| run | suite | pass@1 | less the first | gained | lost | McNemar p |\n|---|---|---|---|---|---|---|\n" + rows
    )
    parts = [head + table, EXPLANATION, _settings(comparison), _flips(comparison)]
    return "\n".join(part for part in parts if part)


EXPLANATION = """\
The difference of pass@1 has a 95% interval of a paired bootstrap over tasks (10,000 draws). McNemar's exact test counts
the tasks that flipped; with several samples a task, one counts as solved where at least half of them pass.
"""


def _row(folders: Sequence[str], found: list[dict[str, Any]], suite: str, number: int) -> Row:
    one, base = found[number]["pass_at_1"][suite], found[0]["pass_at_1"][suite]
    interval = scores.score(list(one.values()), draws=DRAWS, seed=SEED)
    return Row(
        run=folders[number],
        suite=suite,
        score=dataclasses.asdict(interval),
        difference=scores.difference(base, one, draws=DRAWS, seed=SEED) if number else None,
    )


def _different(found: list[dict[str, Any]]) -> dict[str, tuple[str, ...]]:
    made = [{**each["made_with"]["samples"], **each["made_with"]["scores"]} for each in found]
    names = dict.fromkeys(name for each in made for name in each)
    shown = {name: tuple(str(each.get(name, "")) for each in made) for name in names}
    return {name: values for name, values in shown.items() if len(set(values)) > 1}


def _less(row: Row) -> str:
    if row.difference is None:
        return ""
    found = row.difference
    return (
        f"; less the first {100 * found.interval.value:+.1f} [{100 * found.interval.low:+.1f}, "
        f"{100 * found.interval.high:+.1f}], {len(found.gained)} gained, {len(found.lost)} lost, p {found.p:.3g}"
    )


def _cells(found: Difference | None) -> str:
    if found is None:
        return " | | | "
    interval = found.interval
    return (
        f"{100 * interval.value:+.1f} [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}] | {len(found.gained)} | "
        f"{len(found.lost)} | {found.p:.3g}"
    )


def _settings(comparison: Comparison) -> str:
    rows = "".join(f"| {name} | {' | '.join(values)} |\n" for name, values in comparison.settings.items())
    head = f"| differs | {' | '.join(comparison.runs)} |\n|{'---|' * (len(comparison.runs) + 1)}\n"
    return head + rows if rows else ""


def _flips(comparison: Comparison) -> str:
    if not comparison.passed:
        return "No task has another score.\n"
    rows = [
        f"| {task} | {' | '.join(f'{value:g}' for value in values)} |\n"
        for task, values in list(comparison.passed.items())[:FLIPPED_SHOWN]
    ]
    head = f"| task, pass@1 | {' | '.join(comparison.runs)} |\n|{'---|' * (len(comparison.runs) + 1)}\n"
    return f"## The first {len(rows)} of {len(comparison.passed)} tasks that differ\n\n{head}{''.join(rows)}"
