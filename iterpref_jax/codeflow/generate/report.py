"""What a run of CodeFlow came to: `report.json` for programs, `report.md` with plots for people."""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from iterpref_jax.atomic import replace_text
from iterpref_jax.codeflow import filters, focus, records
from iterpref_jax.codeflow.endpoint import ANSWER, WASTE, Journal
from iterpref_jax.codeflow.generate import plots
from iterpref_jax.codeflow.generate.judge import JUDGED
from iterpref_jax.codeflow.generate.outcome import ENDS, Outcome

REPORT, PAGE = "report.json", "report.md"
# Upper edges of the differences' sizes, in lines of the rejected side.
DIFF_EDGES = (0, 1, 2, 3, 5, 10, 20, 50)
MOST_CELL = 120
SPENT = ("calls", "prompt_tokens", "completion_tokens", "cost")

Report = dict[str, Any]
# The plain focus: the lines that the two sides do not share.
_LINES = focus.FocusSettings(mode="line", empty="keep", seed=0)


def make(
    outcomes: Iterable[Outcome],
    pairs: Sequence[records.Pair],
    dropped: collections.Counter[str],
    bills: dict[str, Any],
    about: dict[str, Any],
) -> Report:
    """Returns the report; `bills` as of `bills_of`."""
    counts = _Counts()
    for outcome in outcomes:
        counts.add(outcome)
    return {
        "about": about,
        "ends": dict(sorted(counts.ends.items())),
        "unfinished": about["tasks"] - counts.ends.total(),
        "judged_tasks": counts.judged,
        "passed_at": dict(sorted(counts.passed_at.items())),
        "samples": {"run": counts.runs, "passed": counts.passes} if about["samples"] else {},
        "error_types": dict(counts.errors.most_common()),
        "statuses": dict(sorted(counts.statuses.items())),
        "coverage": dict(sorted(counts.coverage.items())),
        "test_scores": {name: dict(sorted(found.items())) for name, found in sorted(counts.scores.items())},
        "pairs": len(pairs),
        "dropped_pairs": dict(sorted(dropped.items())),
        "diff_lines": _diff_sizes(pairs),
        **bills,
    }


def bills_of(journal: Journal) -> dict[str, Any]:
    """Returns what answers took by purpose, whole ones (`spent`) and those that broke off (`wasted`)."""
    kinds = {"spent": ANSWER, "wasted": WASTE}
    return {
        kind: {name: dataclasses.asdict(total) for name, total in journal.totals(known).items()}
        for kind, known in kinds.items()
    }


class _Counts:
    """Counts over outcomes, one at a time."""

    def __init__(self) -> None:
        self.ends, self.errors, self.statuses = (collections.Counter[str]() for _ in range(3))
        self.passed_at, self.coverage = collections.Counter[int](), collections.Counter[int]()
        self.scores = collections.defaultdict(collections.Counter[int])
        self.judged = self.runs = self.passes = 0

    def add(self, outcome: Outcome) -> None:
        self.ends[outcome.end] += 1
        self.runs += len(outcome.steps)
        self.passes += sum(step.status == "pass" for step in outcome.steps)
        # Whose tests gave a verdict; what the checks said later does not change it.
        self.judged += bool(outcome.steps) and outcome.steps[-1].status not in ENDS
        if outcome.final is not None:
            self.passed_at[outcome.final] += 1
        for step in outcome.steps:
            self.statuses[step.status] += 1
            if step.error_type:
                self.errors[step.error_type] += 1
        if outcome.coverage is not None:
            self.coverage[int(outcome.coverage * 10)] += 1
        for name, score in outcome.scores.items():
            self.scores[name][score] += 1


def write(folder: Path, report: Report) -> None:
    """Writes `report.json`, `report.md` and the plots that it shows."""
    # Through JSON, so that a report just made looks like one read back.
    report = json.loads(json.dumps(report))
    replace_text(folder / REPORT, json.dumps(report, indent=1) + "\n")
    drawn = plots.draw(folder, report)
    replace_text(folder / PAGE, as_markdown(report, drawn))


def total_spent(report: Report) -> dict[str, float]:
    """Returns calls, tokens and cost of all purposes together, wasted ones included."""
    groups = (*report["spent"].values(), *report["wasted"].values())
    return {name: sum(group[name] for group in groups) for name in SPENT}


def as_markdown(report: Report, drawn: Sequence[tuple[str, str]]) -> str:
    """Returns the page; `drawn` are names and titles of the plots."""
    about = report["about"]
    meanings = {rule.name: rule.meaning for rule in filters.RULES} | JUDGED
    ends = [(f"`{name}`", count, ENDS[name]) for name, count in report["ends"].items()]
    if report["unfinished"]:
        ends.append(("unfinished", report["unfinished"], "the budget was spent; the same command goes on"))
    dropped = [(f"`{name}`", count, meanings[name]) for name, count in report["dropped_pairs"].items()]
    parts = [
        f"# CodeFlow: {report['pairs']} pairs from {about['tasks']} tasks",
        f"Model: `{about['model']}`. " + _way(about),
        "## Tasks\n\n" + table(("end", "tasks", "meaning"), ends),
        "" if about["samples"] else "## Passing, by iteration\n\n" + _rates(report),
        "## Pairs\n\n" + table(("dropped", "pairs", "meaning"), dropped) if dropped else "",
        "## Calls\n\n" + _calls(report),
        "## How versions failed\n\n" + table(("error type", "versions"), list(report["error_types"].items())),
        "## Tests\n\n" + _scores(report) if report["test_scores"] else "",
        *(f"![{title}](plots/{name}.png)" for name, title in drawn),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _way(about: dict[str, Any]) -> str:
    if about["samples"]:
        return f"{about['samples']} programs a task, drawn independently."
    return f"One program a task, at most {about['max_refinements']} refinements."


def _rates(report: Report) -> str:
    lines = [(iteration, f"{rate:.1%}") for iteration, rate in enumerate(plots.pass_rates(report))]
    said = f"Of {report['judged_tasks']} tasks whose tests gave a verdict."
    return f"{said}\n\n{table(('iteration', 'passed so far'), lines)}"


def _calls(report: Report) -> str:
    groups = list(report["spent"].items()) + [
        (f"{name}, broken off", group) for name, group in report["wasted"].items()
    ]
    lines = [(name, *(group[field] for field in SPENT[:3]), f"{group['cost']:.4f}") for name, group in groups]
    total = total_spent(report)
    lines.append(("all", *(int(total[field]) for field in SPENT[:3]), f"{total['cost']:.4f}"))
    listed = table(("purpose", "calls", "prompt tokens", "completion tokens", "USD"), lines)
    if not report["pairs"]:
        return listed
    per_pair = (
        f"A pair took {total['calls'] / report['pairs']:.1f} calls and {total['cost'] / report['pairs']:.4f} USD."
    )
    return f"{listed}\n\n{per_pair}"


def _scores(report: Report) -> str:
    lines = [(name, *(found.get(str(n), 0) for n in range(1, 6))) for name, found in report["test_scores"].items()]
    return table(("score", "1", "2", "3", "4", "5"), lines)


def table(head: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    """Returns a Markdown table; what would break out of a cell is escaped, what is long is cut."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(map(_cell, row)) + " |" for row in rows)


def _cell(value: Any) -> str:
    # A program may name its exceptions as it likes.
    text = " ".join(str(value).split()).replace("|", "\\|")
    return text if len(text) <= MOST_CELL else text[:MOST_CELL] + "..."


def _diff_sizes(pairs: Sequence[records.Pair]) -> dict[str, int]:
    sizes = collections.Counter[int]()
    for pair in pairs:
        found = focus.find_focus(pair.chosen, pair.rejected, _LINES, pair.pair_id, fenced=False)
        lines = sum(len(pair.rejected[start:end].splitlines()) for start, end in found.rejected)
        sizes[next((edge for edge in DIFF_EDGES if lines <= edge), -1)] += 1
    labels = {edge: str(edge) for edge in DIFF_EDGES} | {-1: f">{DIFF_EDGES[-1]}"}
    return {labels[edge]: sizes[edge] for edge in (*DIFF_EDGES, -1)}
