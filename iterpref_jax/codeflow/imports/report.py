"""What an import read, ran, kept and dropped: counts, and the verdicts that are not the recorded ones."""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from iterpref_jax.atomic import replace_text
from iterpref_jax.codeflow.imports.candidates import REASONS, Candidate, Dropped, State
from iterpref_jax.codeflow.records import Trajectory
from iterpref_jax.codeflow.sandbox import Finding

# Names of what was dropped, by reason, and differing verdicts: all are counted, so many are listed.
EXAMPLES = 20
DIFFERENCES = 1000


@dataclasses.dataclass(kw_only=True)
class ImportReport:
    """Filled by `judging.judge_items`.

    `candidates` came from the reader. `statuses` counts the sandbox's words for the distinct versions. Of what was
    kept: `sources` and `failing` (versions before the final one) count trajectories, `error_types` failing versions.
    `agreed` counts versions whose verdict is the recorded one, `differed` those where it is not.
    """

    candidates: int = 0
    trajectories: int = 0
    tasks: set[str] = dataclasses.field(default_factory=set)
    dropped: Counter[str] = dataclasses.field(default_factory=Counter)
    examples: dict[str, list[str]] = dataclasses.field(default_factory=lambda: collections.defaultdict(list))
    statuses: Counter[str] = dataclasses.field(default_factory=Counter)
    error_types: Counter[str] = dataclasses.field(default_factory=Counter)
    failing: Counter[int] = dataclasses.field(default_factory=Counter)
    sources: Counter[str] = dataclasses.field(default_factory=Counter)
    agreed: int = 0
    differed: int = 0
    differences: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def add(self, kept: Iterable[Trajectory], dropped: Iterable[Dropped]) -> None:
        """Counts what came of one candidate."""
        self.candidates += 1
        for nothing in dropped:
            self.dropped[nothing.reason] += 1
            if len(self.examples[nothing.reason]) < EXAMPLES:
                self.examples[nothing.reason].append(nothing.name)
        for trajectory in kept:
            self._keep(trajectory)

    def _keep(self, trajectory: Trajectory) -> None:
        self.trajectories += 1
        self.tasks.add(trajectory.task)
        self.sources[trajectory.source] += 1
        self.failing[len(trajectory.versions) - 1] += 1
        self.error_types.update(version.error_type or "" for version in trajectory.versions[:-1])

    def count_versions(self, candidate: Candidate, judged: Iterable[tuple[State, Finding]]) -> None:
        for number, (state, finding) in enumerate(judged):
            self.statuses[finding.status] += 1
            if state.recorded is None or not (finding.passed or finding.failed):
                continue
            self.agreed += state.recorded is finding.passed
            self.differed += state.recorded is not finding.passed
            if state.recorded is not finding.passed and len(self.differences) < DIFFERENCES:
                said = f"{finding.status} {finding.error_type} {finding.message[:200]}".rstrip()
                words = {True: "passes", False: "fails"}
                difference = {
                    "name": candidate.name,
                    "version": number,
                    "recorded": words[state.recorded],
                    "found": said,
                }
                self.differences.append(difference)


def as_json(report: ImportReport, about: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the report as plain values, the same for the same input; `about` says what was imported."""
    dropped = {reason.name: report.dropped[reason.name] for reason in REASONS}
    return {
        **about,
        "candidates": report.candidates,
        "trajectories": report.trajectories,
        "tasks": len(report.tasks),
        "dropped": dropped,
        "dropped_names": {name: report.examples[name] for name, count in dropped.items() if count},
        "sources": _by_count(report.sources),
        "statuses": _by_count(report.statuses),
        "error_types": _by_count(report.error_types),
        "failing_versions": {str(count): number for count, number in sorted(report.failing.items())},
        "recorded": {"agreed": report.agreed, "differed": report.differed, "differences": report.differences},
    }


def write(folder: pathlib.Path, content: Mapping[str, Any]) -> None:
    """Writes `report.json` and `report.md` into the folder."""
    replace_text(folder / "report.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    replace_text(folder / "report.md", as_markdown(content))


def as_markdown(content: Mapping[str, Any]) -> str:
    """Returns the report for a person."""
    meanings = {reason.name: reason.meaning for reason in REASONS}
    dropped = [(f"`{name}`", count, meanings[name]) for name, count in content["dropped"].items() if count]
    recorded = content["recorded"]
    inputs = [f"- {text}" for text in content["inputs"]]
    lines = [
        f"- {content['trajectories']} trajectories of {content['tasks']} tasks from {content['candidates']} candidates",
        f"- recorded verdicts: {recorded['agreed']} agree with the sandbox's, {recorded['differed']} differ",
    ]
    differences = [tuple(difference.values()) for difference in recorded["differences"][:EXAMPLES]]
    parts = [
        [f"# Import: {content['form']}", "", *inputs, *lines],
        _table("Dropped", ("reason", "candidates", "meaning"), dropped),
        _table("Runs of distinct versions", ("status", "versions"), content["statuses"].items()),
        _table("Failing versions that were kept", ("error", "versions"), content["error_types"].items()),
        _table("Failing versions in a trajectory", ("failing", "trajectories"), content["failing_versions"].items()),
        _table("Sources", ("source", "trajectories"), content["sources"].items()),
        _table("Verdicts that differ (all in report.json)", ("name", "version", "recorded", "found"), differences),
    ]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def _table(title: str, head: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> list[str]:
    # A bar or a line's end inside a cell would break the table.
    lines = ["| " + " | ".join(" ".join(str(cell).replace("|", "\\|").split()) for cell in row) + " |" for row in rows]
    head_lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return [f"## {title}", "", *head_lines, *lines] if lines else []


def _by_count(counter: Counter[str]) -> dict[str, int]:
    return dict(sorted(counter.items(), key=lambda item: (-item[1], item[0])))
