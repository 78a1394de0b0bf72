"""What became of a task, in a form that is stored and read back."""

from __future__ import annotations

import dataclasses
from typing import Any

from iterpref_jax.codeflow.records import Trajectory, Version
from iterpref_jax.codeflow.sandbox import Verdict

# How a task may end, and what that means; only the first gives a trajectory.
ENDS = {
    "paired": "failing versions and a passing one",
    "passed_first": "the first program passed, so there is nothing to prefer",
    "never_passed": "no program passed within the refinements",
    "ask_failed": "the model could not be asked (too long, refused, or failed too often)",
    "malformed": "the model's answer could not be read, re-asks included",
    "no_tests": "the tests check nothing",
    "vacuous": "the tests also pass for a program whose functions return None",
    "tampered": "a program replaced what judges it",
    "sandbox_error": "a run failed for the sandbox's own sake; the next start tries it again",
    "flaky": "the passing program fails with other hash seeds",
    "low_coverage": "the tests run too few lines of the passing program (generate.min_coverage)",
    "low_test_score": "the judge gave the tests less than generate.min_test_score",
}
# Ends that the next start of the same command may change.
ASK_FAILED = "ask_failed"
OPEN = (ASK_FAILED, "sandbox_error")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """One version of a program and the verdict on it; `iteration` 0 is the first, or the sample's number."""

    iteration: int
    code: str
    status: str
    error_type: str
    traceback: str
    tests_run: int
    tests_passed: int

    @classmethod
    def of(cls, iteration: int, code: str, verdict: Verdict) -> Step:
        return cls(
            iteration=iteration,
            code=code,
            status=verdict.status,
            error_type=verdict.error_type,
            traceback=verdict.traceback,
            tests_run=verdict.tests_run,
            tests_passed=verdict.tests_passed,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a task ended (a key of `ENDS`), why (`detail`), and all that was made on the way."""

    task_id: str
    source: str
    end: str
    detail: str
    features: tuple[tuple[str, ...], ...]
    instruction: str
    test_code: str
    setup_code: str
    style: str
    meta: dict[str, Any]
    steps: tuple[Step, ...]
    final: int | None
    scores: dict[str, int]
    coverage: float | None

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Outcome:
        """Returns what `dataclasses.asdict` of an outcome became in JSON."""
        steps = tuple(Step(**step) for step in value["steps"])
        return cls(**{**value, "steps": steps, "features": tuple(map(tuple, value["features"]))})

    def trajectory(self) -> Trajectory | None:
        """Returns the failing versions, each once, and the passing one; None for other ends than "paired"."""
        if self.end != "paired" or self.final is None:
            return None
        failing = {step.code: step for step in self.steps if step.status != "pass"}
        versions = [
            Version(code=step.code, passed=False, error_type=step.error_type, stderr_tail=step.traceback)
            for step in failing.values()
        ]
        final = Version(code=self.steps[self.final].code, passed=True, error_type=None, stderr_tail="")
        made = {"style": self.style, "features": [" / ".join(path) for path in self.features]}
        checked = {"test_scores": self.scores, "test_coverage": self.coverage}
        kept = {name: value for name, value in (made | checked).items() if value not in (None, [], {})}
        return Trajectory(
            task_id=self.task_id,
            source=self.source,
            instruction=self.instruction,
            test_code=self.test_code,
            setup_code=self.setup_code,
            versions=(*versions, final),
            meta=kept | self.meta,
        )
