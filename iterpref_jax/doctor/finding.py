"""What a check found, and how all findings are shown."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Sequence
from typing import Any

OK, WARN, FAIL = "OK", "WARN", "FAIL"
_WIDTH = 110


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the doctor: what was looked at, what was found, and what to do if it is not well."""

    status: str
    check: str
    text: str
    advice: str


def ok(check: str, text: str) -> Finding:
    return Finding(OK, check, text, "")


def warn(check: str, text: str, advice: str) -> Finding:
    """A run works, but slower or less safely than it could."""
    return Finding(WARN, check, text, advice)


def fail(check: str, text: str, advice: str) -> Finding:
    """A run would not start, or not end well."""
    return Finding(FAIL, check, text, advice)


@dataclasses.dataclass(frozen=True)
class Joined:
    """A finding, and the processes that have it; none named means all of them."""

    finding: Finding
    processes: tuple[int, ...]


def joined(everybody: Sequence[Sequence[Finding]]) -> list[Joined]:
    """Returns the findings of all processes in the order of the checks, equal ones once."""
    having: dict[Finding, list[int]] = {}
    for process, findings in enumerate(everybody):
        for finding in findings:
            having.setdefault(finding, []).append(process)
    order = {finding.check: None for findings in everybody for finding in findings}
    checks = list(order)
    found = [
        Joined(finding, () if len(processes) == len(everybody) else tuple(processes))
        for finding, processes in having.items()
    ]
    return sorted(found, key=lambda one: checks.index(one.finding.check))


def table(found: Sequence[Joined]) -> str:
    """Returns the lines for a person."""
    width = max((len(one.finding.check) for one in found), default=0)
    lines = []
    for one in found:
        who = f"process {', '.join(map(str, one.processes))}: " if one.processes else ""
        head = f"{one.finding.status:<4}  {one.finding.check:<{width}}  "
        lines += textwrap.wrap(who + one.finding.text, _WIDTH, initial_indent=head, subsequent_indent=" " * len(head))
        if one.finding.advice:
            indent = " " * len(head)
            lines += textwrap.wrap(
                one.finding.advice, _WIDTH, initial_indent=f"{indent}-> ", subsequent_indent=indent + "   "
            )
    return "\n".join([*lines, summary(found)])


def summary(found: Sequence[Joined]) -> str:
    counts = {status: sum(one.finding.status == status for one in found) for status in (OK, WARN, FAIL)}
    return f"{counts[OK]} ok, {counts[WARN]} to look at, {counts[FAIL]} wrong"


def content(found: Sequence[Joined]) -> list[dict[str, Any]]:
    """Returns the findings as JSON values."""
    return [dataclasses.asdict(one.finding) | {"processes": list(one.processes)} for one in found]


def has_failed(found: Sequence[Joined]) -> bool:
    return any(one.finding.status == FAIL for one in found)
