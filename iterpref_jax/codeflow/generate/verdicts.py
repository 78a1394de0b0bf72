"""Runs in the sandbox, each of them once: a verdict is in the journal before anybody acts on it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import hashlib
from typing import Any, Protocol

from iterpref_jax.codeflow.endpoint.asks import canonical
from iterpref_jax.codeflow.endpoint.journal import Journal
from iterpref_jax.codeflow.sandbox import Program, SandboxSettings, Verdict

VERDICT = "verdict"


class Judge(Protocol):
    """A sandbox, here or in a cluster; called from any thread."""

    def run(self, program: Program, *, check_vacuous: bool, check_flaky: bool) -> Verdict: ...

    def stop(self) -> None: ...


class Verdicts:
    """Judges programs with tests from coroutines, as many at a time as `pool` has threads."""

    def __init__(self, sandbox: Judge, limits: SandboxSettings, journal: Journal, pool: concurrent.futures.Executor):
        self._sandbox, self._journal, self._pool = sandbox, journal, pool
        self._limits = limits.that_matter()
        self._running: dict[str, concurrent.futures.Future[Verdict]] = {}

    async def of(self, program: Program, *, check_flaky: bool = False) -> Verdict:
        """Returns the verdict on a program, the journal's if it was run before with the same limits.

        Tests that a stub passes too are `vacuous`; with `check_flaky`, which is for a program that passed and so was
        compared with its stub already, one that fails with another hash seed is `flaky`. A `sandbox_error` is not kept:
        it says nothing about the program, and the next start tries again.
        """
        asked = {"program": dataclasses.asdict(program), "check_flaky": check_flaky, "sandbox": self._limits}
        key = hashlib.sha256(canonical(asked).encode()).hexdigest()
        known = self._journal.get(VERDICT, key)
        if known is not None:
            return _from_json(known)
        # Equal programs at the same time (samples are often equal) are one run.
        if key not in self._running:
            self._running[key] = self._pool.submit(self._judge, program, check_flaky, key)
        try:
            return await asyncio.wrap_future(self._running[key])
        finally:
            self._running.pop(key, None)

    def _judge(self, program: Program, check_flaky: bool, key: str) -> Verdict:
        verdict = self._sandbox.run(program, check_vacuous=not check_flaky, check_flaky=check_flaky)
        if verdict.status != "sandbox_error":
            self._journal.put(VERDICT, key, dataclasses.asdict(verdict))
        return verdict


def _from_json(known: dict[str, Any]) -> Verdict:
    by_seed = tuple((seed, status) for seed, status in known["by_seed"])
    return Verdict(**{**known, "gaps": tuple(known["gaps"]), "cases": (), "by_seed": by_seed})
