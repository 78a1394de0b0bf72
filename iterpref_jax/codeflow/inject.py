"""CodeFlow without a model: debugging histories made by putting bugs into programs that pass and undoing them.

A history v0 .. vT stacks up to `max_bugs` mutations on a program and takes them back one at a time. Nothing is
assumed about a version: each one is run against the task's tests, and a history holds only failing versions before
the last and a passing one at the end.
"""

from __future__ import annotations

import ast
import dataclasses
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from iterpref_jax.codeflow import mutations
from iterpref_jax.codeflow.mutations import Edit
from iterpref_jax.codeflow.records import Trajectory, Version
from iterpref_jax.codeflow.runs import Judge, Subject, version_of
from iterpref_jax.codeflow.sandbox import Finding
from iterpref_jax.errors import UserError

# Tasks whose runs share the workers; more keep them busier, fewer give results sooner.
BATCH = 32
# How often a task draws new mutants in place of those that its tests did not kill.
ROUNDS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class InjectSettings:
    """`histories_per_task` histories of 1 to `max_bugs` bugs each; equal seeds give equal histories."""

    histories_per_task: int
    max_bugs: int
    seed: int

    def __post_init__(self) -> None:
        for name in ("histories_per_task", "max_bugs"):
            if getattr(self, name) < 1:
                raise UserError(f"inject.{name}: wanted at least 1, got {getattr(self, name)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A program that passes its tests: `setup_code + code + test_code` runs as one script."""

    task_id: str
    source: str
    instruction: str
    code: str
    test_code: str
    setup_code: str


@dataclasses.dataclass(kw_only=True)
class InjectReport:
    """What happened; filled while `inject` is iterated.

    `skipped` gives the reason by task. `tried` single mutants were run, by mutation: `killed` failed, `survived`
    passed (equivalent, or the tests do not look there). `unjudged` counts the statuses of versions that gave no verdict
    on the program, `endings` those of failing versions, `middle_passed` the versions of stacked bugs that passed. Only
    failing versions and final ones are kept.
    """

    tasks: int = 0
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)
    tried: Counter[str] = dataclasses.field(default_factory=Counter)
    killed: Counter[str] = dataclasses.field(default_factory=Counter)
    survived: Counter[str] = dataclasses.field(default_factory=Counter)
    unjudged: Counter[str] = dataclasses.field(default_factory=Counter)
    endings: Counter[str] = dataclasses.field(default_factory=Counter)
    trajectories: int = 0
    versions: int = 0
    middle_passed: int = 0


OnTask = Callable[[Task, int], None]


def inject(
    tasks: Iterable[Task],
    settings: InjectSettings,
    judge: Judge,
    *,
    report: InjectReport | None = None,
    on_task: OnTask | None = None,
) -> Iterator[Trajectory]:
    """Yields verified histories in the order of the tasks; calls `on_task(task, histories)` after each task.

    A task is skipped, with its reason in `report`, if its own code fails in one of three runs that differ in their hash
    seed, if a stub passes its tests, or if none of its mutants fails.
    """
    report = InjectReport() if report is None else report
    rest = iter(tasks)
    while batch := list(itertools.islice(rest, BATCH)):
        plans = [_Plan(task, settings) for task in batch]
        _check_originals(plans, judge)
        _find_bugs(plans, judge, report)
        _run_stacks(plans, judge)
        for plan in plans:
            histories = list(plan.trajectories(report))
            report.tasks += 1
            if plan.skipped:
                report.skipped[plan.task.task_id] = plan.skipped
            yield from histories
            if on_task is not None:
                on_task(plan.task, len(histories))


class _Plan:
    """One task on its way through a batch: the bugs drawn, the verdicts known, the stacks built."""

    def __init__(self, task: Task, settings: InjectSettings):
        self.task, self.settings, self.skipped = task, settings, ""
        # A string seeds by its SHA-512, the same in every process; hash() would not.
        self.rng = random.Random(f"{settings.seed}:{task.task_id}")
        self.verdicts: dict[str, Finding] = {}
        self.bugs: list[Edit] = []
        self.stacks: list[list[Edit]] = []
        self._draw = iter(())
        self._known = {_meaning(task.code)}

    def ready(self) -> None:
        """Prepares the draw of bugs; the code is known to run by now."""
        try:
            self._draw = self._bugs_in_random_order(mutations.find_edits(self.task.code))
        except (SyntaxError, ValueError, RecursionError) as error:
            self.skipped = f"cannot be parsed: {error}"

    def draw(self) -> list[Edit]:
        """New bugs, as many as histories still lack one."""
        return list(itertools.islice(self._draw, max(self.settings.histories_per_task - len(self.bugs), 0)))

    def code(self, bugs: Iterable[Edit]) -> str:
        return mutations.apply_edits(self.task.code, bugs)

    def subject(self, code: str) -> Subject:
        return Subject(style="script", setup=self.task.setup_code, tests=self.task.test_code, code=code)

    def stack(self) -> None:
        """Puts 0 to `max_bugs - 1` more bugs on each bug, which is the last to be undone."""
        for last in self.bugs:
            stack = [last]
            others = self.rng.sample(self.bugs, len(self.bugs))
            for bug in others[: self.rng.randrange(self.settings.max_bugs)]:
                if not any(bug.touches(other) for other in stack):
                    stack.insert(0, bug)
            self.stacks.append(stack)

    def trajectories(self, report: InjectReport) -> Iterator[Trajectory]:
        for number, stack in enumerate(self.stacks):
            versions = []
            for code in _codes(self, stack):
                verdict = self.verdicts[code]
                if verdict.failed:
                    report.endings[verdict.status] += 1
                    versions.append(version_of(code, verdict))
                elif verdict.passed:
                    report.middle_passed += 1
                else:
                    report.unjudged[verdict.status] += 1
            if versions:
                report.trajectories += 1
                report.versions += len(versions) + 1
                yield self._trajectory(number, stack, versions)

    def _trajectory(self, number: int, stack: Sequence[Edit], versions: Sequence[Version]) -> Trajectory:
        task, final = self.task, self.verdicts[self.task.code]
        names = [bug.mutation for bug in stack]
        return Trajectory(
            task_id=f"{task.task_id}#{number}",
            source=task.source,
            instruction=task.instruction,
            test_code=task.test_code,
            setup_code=task.setup_code,
            versions=(*versions, version_of(task.code, final)),
            meta={"task": task.task_id, "mutations": names, "tier": final.tier},
        )

    def _bugs_in_random_order(self, found: dict[str, list[Edit]]) -> Iterator[Edit]:
        # The mutation first and its place second: else the names, which are everywhere, would be most of the bugs.
        pools = {name: self.rng.sample(edits, len(edits)) for name, edits in found.items() if edits}
        while pools:
            for name in self.rng.sample(sorted(pools), len(pools)):
                bug = pools[name].pop()
                if not pools[name]:
                    del pools[name]
                if self._is_new(bug):
                    yield bug

    def _is_new(self, bug: Edit) -> bool:
        try:
            meaning = _meaning(self.code([bug]))
        except (SyntaxError, ValueError, RecursionError):
            return False
        if meaning in self._known:
            return False
        self._known.add(meaning)
        return True


def _meaning(code: str) -> str:
    try:
        return ast.dump(ast.parse(code))
    except (SyntaxError, ValueError, RecursionError):
        return code


def _codes(plan: _Plan, stack: Sequence[Edit]) -> list[str]:
    """v0 .. vT-1: all bugs, then one fewer each time."""
    return [plan.code(stack[undone:]) for undone in range(len(stack))]


def _live(plans: Iterable[_Plan]) -> list[_Plan]:
    return [plan for plan in plans if not plan.skipped]


def _check_originals(plans: Sequence[_Plan], judge: Judge) -> None:
    live = _live(plans)
    verdicts = judge.confirm_all([plan.subject(plan.task.code) for plan in live])
    for plan, verdict in zip(live, verdicts, strict=True):
        plan.verdicts[plan.task.code] = verdict
        if not verdict.passed:
            plan.skipped = f"its own code: {verdict.status}: {verdict.error_type} {verdict.message}".strip()
    for plan in _live(plans):
        plan.ready()


def _find_bugs(plans: Sequence[_Plan], judge: Judge, report: InjectReport) -> None:
    for _ in range(ROUNDS):
        drawn = [(plan, bug) for plan in _live(plans) for bug in plan.draw()]
        _run(((plan, plan.code([bug])) for plan, bug in drawn), judge)
        for plan, bug in drawn:
            verdict = plan.verdicts[plan.code([bug])]
            report.tried[bug.mutation] += 1
            report.killed[bug.mutation] += verdict.failed
            report.survived[bug.mutation] += verdict.passed
            if verdict.failed:
                plan.bugs.append(bug)
            elif not verdict.passed:
                report.unjudged[verdict.status] += 1
    for plan in _live(plans):
        if not plan.bugs:
            plan.skipped = "no mutant fails its tests"


def _run_stacks(plans: Sequence[_Plan], judge: Judge) -> None:
    for plan in _live(plans):
        plan.stack()
    _run(((plan, code) for plan in _live(plans) for stack in plan.stacks for code in _codes(plan, stack)), judge)


def _run(wanted: Iterable[tuple[_Plan, str]], judge: Judge) -> None:
    """Fills in the verdicts that are not known yet; equal codes of a task are run once."""
    unknown = dict.fromkeys((plan, code) for plan, code in wanted if code not in plan.verdicts)
    verdicts = judge.try_all([plan.subject(code) for plan, code in unknown])
    for (plan, code), verdict in zip(unknown, verdicts, strict=True):
        plan.verdicts[code] = verdict
