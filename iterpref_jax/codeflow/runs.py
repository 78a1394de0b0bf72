"""Runs of programs under test that are remembered: a journal holds what was found, and only what is new is run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

from iterpref_jax.codeflow import stdin_cases
from iterpref_jax.codeflow.endpoint import Journal
from iterpref_jax.codeflow.records import Version
from iterpref_jax.codeflow.sandbox import Finding, Program, Sandbox, SandboxSettings, Verdict

# Under which the journal keeps findings.
KIND = "verdict"


class Subject(NamedTuple):
    """A version with the tests that judge it."""

    style: str
    setup: str
    tests: str
    code: str

    def program(self) -> Program:
        """Returns what the sandbox runs."""
        if self.style == stdin_cases.STYLE:
            return Program(
                code=self.code, setup=self.setup, style=stdin_cases.STYLE, cases=stdin_cases.parse(self.tests)
            )
        return Program(code=self.code, tests=self.tests, setup=self.setup, style=self.style)


def version_of(code: str, finding: Finding) -> Version:
    """Returns a version as a trajectory holds it."""
    return Version(
        code=code,
        passed=finding.passed,
        error_type=None if finding.passed else finding.error_type,
        stderr_tail=finding.traceback,
    )


class Judge:
    """Runs what has no finding in the journal yet; `ran` and `known` count both kinds, `on_run` follows every run."""

    def __init__(
        self,
        sandbox: Sandbox,
        journal: Journal,
        settings: SandboxSettings,
        on_run: Callable[[], None] = lambda: None,
    ):
        self._sandbox, self._journal, self._on_run = sandbox, journal, on_run
        self._limits = settings.that_matter()
        self.known = self.ran = 0

    def try_all(self, subjects: Sequence[Subject]) -> list[Finding]:
        """Runs every subject once; the findings come in the order of the subjects."""
        return self._find(subjects, confirm=False)

    def confirm_all(self, subjects: Sequence[Subject]) -> list[Finding]:
        """Runs every subject with three hash seeds and its tests against a stub: "flaky" and "vacuous" come out."""
        return self._find(subjects, confirm=True)

    def _find(self, subjects: Sequence[Subject], *, confirm: bool) -> list[Finding]:
        keys = {subject: self._key(subject, confirm) for subject in subjects}
        stored = {subject: self._journal.get(KIND, key) for subject, key in keys.items()}
        findings = {subject: Finding(**fields) for subject, fields in stored.items() if fields is not None}
        self.known += len(findings)
        missing = [subject for subject in keys if subject not in findings]
        # A script has no stub; that silence fails is seen from its cases (`stdin_cases.text_of`).
        scripts = [subject for subject in missing if subject.style == stdin_cases.STYLE]
        others = [subject for subject in missing if subject.style != stdin_cases.STYLE]
        for chosen, check_vacuous in ((scripts, False), (others, confirm)):

            def keep(index: int, verdict: Verdict, chosen: Sequence[Subject] = chosen) -> None:
                findings[chosen[index]] = self._stored(keys[chosen[index]], verdict)

            programs = [subject.program() for subject in chosen]
            self._sandbox.run_all(programs, keep, check_vacuous=check_vacuous, check_flaky=confirm)
        return [findings[subject] for subject in subjects]

    def _stored(self, key: str, verdict: Verdict) -> Finding:
        finding = Finding(**{field.name: getattr(verdict, field.name) for field in dataclasses.fields(Finding)})
        # Our own failure is no verdict, and a package may be there by the next start: that tries again.
        if finding.status != "sandbox_error" and finding.error_type != "ModuleNotFoundError":
            self._journal.put(KIND, key, dataclasses.asdict(finding))
        self.ran += 1
        self._on_run()
        return finding

    def _key(self, subject: Subject, confirm: bool) -> str:
        content = json.dumps([subject, self._limits, confirm], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()
