"""From candidates to trajectories: every version is run, and what comes out is believed, not what was recorded."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence

from iterpref_jax.codeflow.imports import problems
from iterpref_jax.codeflow.imports.candidates import REASONS, STYLES, Candidate, Dropped, Item, State
from iterpref_jax.codeflow.imports.report import ImportReport
from iterpref_jax.codeflow.records import Trajectory
from iterpref_jax.codeflow.runs import Judge, Subject, version_of
from iterpref_jax.codeflow.sandbox import Finding

# Candidates whose runs share the workers.
BATCH = 32
Judged = tuple[State, Finding]


@dataclasses.dataclass(frozen=True, kw_only=True)
class History:
    """Failing versions and the passing one that ends them, before it has been confirmed."""

    candidate: Candidate
    failing: tuple[Judged, ...]
    final: Judged


def judge_items(items: Iterable[Item], judge: Judge, report: ImportReport) -> Iterator[list[Trajectory]]:
    """Yields the trajectories of every item, in the order of the items; fills `report`."""
    names: set[str] = set()
    seen: set[bytes] = set()
    rest = iter(items)
    while batch := list(itertools.islice(rest, BATCH)):
        for found in _confirmed(_histories([_other_style(item) for item in batch], judge, report), judge):
            outcomes = [_new(outcome, seen) for outcome in found]
            kept = [_trajectory(outcome, names) for outcome in outcomes if isinstance(outcome, History)]
            report.add(kept, [outcome for outcome in outcomes if isinstance(outcome, Dropped)])
            yield kept


def subject_of(candidate: Candidate, code: str) -> Subject:
    """Returns what is judged of one version."""
    return Subject(style=candidate.style, setup=candidate.setup, tests=candidate.tests, code=code)


def _other_style(item: Item) -> Item:
    if isinstance(item, Candidate) and item.style not in STYLES:
        return Dropped(name=item.name, reason="other_style")
    return item


def _histories(items: Sequence[Item], judge: Judge, report: ImportReport) -> list[list[History | Dropped]]:
    """Runs every version once and cuts the histories out of what passed and failed."""
    candidates = [item for item in items if isinstance(item, Candidate)]
    states = [_distinct(candidate) for candidate in candidates]
    runs = [(candidate, state) for candidate, found in zip(candidates, states, strict=True) for state in found]
    findings = iter(judge.try_all([subject_of(candidate, state.code) for candidate, state in runs]))
    outcomes: list[list[History | Dropped]] = []
    found = iter(states)
    for item in items:
        if isinstance(item, Dropped):
            outcomes.append([item])
            continue
        judged = [(state, next(findings)) for state in next(found)]
        report.count_versions(item, judged)
        outcomes.append(_cut(item, judged))
    return outcomes


def _distinct(candidate: Candidate) -> list[State]:
    """The versions without repeats: the first of equal ones stays, but a final version stays at the end."""
    *earlier, final = candidate.states
    unique = {state.code: state for state in reversed(candidate.states)}
    order = list(dict.fromkeys(state.code for state in candidate.states))
    if candidate.order == "whole":
        order = [*(code for code in order if code != final.code), final.code]
    return [unique[code] for code in order]


def _cut(candidate: Candidate, judged: Sequence[Judged]) -> list[History | Dropped]:
    if candidate.order == "pool":
        return _pairs_of_pool(candidate, judged)
    if candidate.order == "whole":
        end = len(judged) - 1
        if not judged[end][1].passed:
            return [Dropped(name=candidate.name, reason=_not_passed([judged[end][1]], "final_fails"))]
    else:
        end = next((index for index, (_, finding) in enumerate(judged) if finding.passed), -1)
        if end < 0:
            return [
                Dropped(name=candidate.name, reason=_not_passed([finding for _, finding in judged], "never_passes"))
            ]
    failing = tuple((state, finding) for state, finding in judged[:end] if finding.failed)
    if not failing:
        return [Dropped(name=candidate.name, reason="no_failing_version")]
    return [History(candidate=candidate, failing=failing, final=judged[end])]


def _not_passed(findings: Sequence[Finding], failed: str) -> str:
    """Why nothing passed: the tests check nothing, no run says anything, or the programs are wrong."""
    if any(finding.status == "no_tests" for finding in findings):
        return "vacuous"
    return failed if any(finding.failed for finding in findings) else "unjudged"


def _pairs_of_pool(candidate: Candidate, judged: Sequence[Judged]) -> list[History | Dropped]:
    """Every right program with the nearest wrong one; a claim that the run refutes makes a program neither."""
    right = [(state, finding) for state, finding in judged if finding.passed and state.recorded is not False]
    wrong = [(state, finding) for state, finding in judged if finding.failed and state.recorded is not True]
    if not right:
        return [Dropped(name=candidate.name, reason=_not_passed([finding for _, finding in judged], "never_passes"))]
    if not wrong:
        return [Dropped(name=candidate.name, reason="no_failing_version")]
    histories: list[History | Dropped] = []
    for final in right:
        nearest = max(wrong, key=lambda judged: problems.similarity(judged[0].code, final[0].code))
        histories.append(History(candidate=candidate, failing=(nearest,), final=final))
    return histories


def _confirmed(outcomes: Sequence[list[History | Dropped]], judge: Judge) -> list[list[History | Dropped]]:
    """Runs every final version again, so that flaky programs and tests that check nothing are found."""
    histories = [outcome for found in outcomes for outcome in found if isinstance(outcome, History)]
    findings = iter(judge.confirm_all([subject_of(old.candidate, old.final[0].code) for old in histories]))
    return [
        [_judged_again(outcome, next(findings)) if isinstance(outcome, History) else outcome for outcome in found]
        for found in outcomes
    ]


def _judged_again(history: History, finding: Finding) -> History | Dropped:
    if finding.passed:
        return history
    # A pass that is none the second time differs from run to run as well.
    reason = "flaky" if finding.failed else finding.status
    known = {known.name for known in REASONS}
    return Dropped(name=history.candidate.name, reason=reason if reason in known else "unjudged")


def _new(outcome: History | Dropped, seen: set[bytes]) -> History | Dropped:
    if isinstance(outcome, Dropped):
        return outcome
    candidate = outcome.candidate
    codes = [state.code for state, _ in (*outcome.failing, outcome.final)]
    content = json.dumps([candidate.instruction, candidate.setup, candidate.tests, codes])
    key = hashlib.sha256(content.encode()).digest()
    if key in seen:
        return Dropped(name=candidate.name, reason="duplicate")
    seen.add(key)
    return outcome


def _trajectory(history: History, names: set[str]) -> Trajectory:
    candidate = history.candidate
    style = {} if candidate.style == "script" else {"style": candidate.style}
    return Trajectory(
        task_id=_unused(candidate.name, names),
        source=candidate.source,
        instruction=candidate.instruction,
        test_code=candidate.tests,
        setup_code=candidate.setup,
        versions=tuple(version_of(state.code, finding) for state, finding in (*history.failing, history.final)),
        meta={**candidate.meta, "task": candidate.task, "tier": history.final[1].tier, **style},
    )


def _unused(name: str, names: set[str]) -> str:
    numbered = itertools.chain([name], (f"{name}#{number}" for number in itertools.count(2)))
    chosen = next(other for other in numbered if other not in names)
    names.add(chosen)
    return chosen
