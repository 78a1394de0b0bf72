"""Runs of programs under test that are remembered: a journal holds what was found, and only what is new is run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

from iterpref_jax.codeflow.endpoint import Journal
from iterpref_jax.codeflow.imports import stdin_script
from iterpref_jax.codeflow.imports.candidates import STDIN
from iterpref_jax.codeflow.sandbox import FAILING, Program, Sandbox, SandboxSettings, Verdict

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
        if self.style == STDIN:
            return stdin_script.stdin_program(self.code, self.tests)
        return Program(code=self.code, tests=self.tests, setup=self.setup, style=self.style)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """What a trajectory keeps of a verdict; see `sandbox.Verdict` for the fields."""

    status: str
    error_type: str
    message: str
    traceback: str
    tier: str

    @property
    def passed(self) -> bool:
        return self.status == "pass"

    @property
    def failed(self) -> bool:
        return self.status in FAILING


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
        # The number of workers changes no verdict.
        self._limits = {name: value for name, value in dataclasses.asdict(settings).items() if name != "workers"}
        self.known = self.ran = 0

    def run_all(self, subjects: Sequence[Subject], *, hash_seed: int, check_vacuous: bool = False) -> list[Finding]:
        """Returns what was found, in the order of the subjects; equal ones are run once."""
        keys = {subject: self._key(subject, hash_seed, check_vacuous) for subject in subjects}
        stored = {subject: self._journal.get(KIND, key) for subject, key in keys.items()}
        findings = {subject: Finding(**fields) for subject, fields in stored.items() if fields is not None}
        missing = [subject for subject in keys if subject not in findings]

        def keep(index: int, verdict: Verdict) -> None:
            finding = findings[missing[index]] = _finding(verdict)
            # Our own failure is no verdict: the next start tries again.
            if finding.status != "sandbox_error":
                self._journal.put(KIND, keys[missing[index]], dataclasses.asdict(finding))
            self.ran += 1
            self._on_run()

        self.known += len(findings)
        programs = [subject.program() for subject in missing]
        self._sandbox.run_all(programs, keep, check_vacuous=check_vacuous, hash_seed=hash_seed)
        return [findings[subject] for subject in subjects]

    def _key(self, subject: Subject, hash_seed: int, check_vacuous: bool) -> str:
        content = [subject, self._limits, hash_seed, check_vacuous]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _finding(verdict: Verdict) -> Finding:
    return Finding(**{field.name: getattr(verdict, field.name) for field in dataclasses.fields(Finding)})
