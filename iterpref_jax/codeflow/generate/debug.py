"""One task from its instruction to its end: a program, frozen tests, runs and repairs until it passes; or samples."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

from iterpref_jax.codeflow.draws import draw
from iterpref_jax.codeflow.endpoint import AskFailed, MalformedAnswer
from iterpref_jax.codeflow.generate.outcome import ASK_FAILED, ENDS, Outcome, Step
from iterpref_jax.codeflow.generate.settings import GenerateSettings
from iterpref_jax.codeflow.generate.tasks import Seed
from iterpref_jax.codeflow.generate.verdicts import Verdicts
from iterpref_jax.codeflow.generate.writer import Writer
from iterpref_jax.codeflow.sandbox import Program


class _Ended(Exception):
    """The task has come to an end: its name, and why."""

    def __init__(self, end: str, detail: str = ""):
        super().__init__(end, detail)
        self.end, self.detail = end, detail


@dataclasses.dataclass(kw_only=True)
class _Draft:
    """What is known of a task so far."""

    seed: Seed
    instruction: str
    test_code: str
    steps: list[Step] = dataclasses.field(default_factory=list)
    final: int | None = None
    scores: dict[str, int] = dataclasses.field(default_factory=dict)
    coverage: float | None = None

    def program(self, code: str) -> Program:
        seed = self.seed
        return Program(code=code, tests=self.test_code, setup=seed.setup_code, style=seed.style)

    def outcome(self, end: str, detail: str) -> Outcome:
        known: dict[str, Any] = {
            name: getattr(self.seed, name) for name in ("task_id", "source", "features", "setup_code", "style", "meta")
        }
        known |= {name: getattr(self, name) for name in ("instruction", "test_code", "final", "scores", "coverage")}
        return Outcome(**known, end=end, detail=detail, steps=tuple(self.steps))


class Solver:
    """Solves tasks; `samples` > 0 draws so many programs instead of repairing one."""

    def __init__(self, writer: Writer, verdicts: Verdicts, settings: GenerateSettings, samples: int):
        self._writer, self._verdicts, self._settings, self._samples = writer, verdicts, settings, samples

    async def solve(self, seed: Seed, number: int) -> Outcome:
        """Returns what became of a task, the `number`-th. Raises BudgetSpent and UserError, which end the whole run."""
        draft = _Draft(seed=seed, instruction=seed.instruction, test_code=seed.test_code)
        try:
            if not draft.instruction:
                draft.instruction = await self._writer.instruction(seed.features, number)
            await (self._sample(draft) if self._samples else self._debug(draft))
            await self._check(draft)
        except _Ended as ended:
            return draft.outcome(ended.end, ended.detail)
        except MalformedAnswer as error:
            return draft.outcome("malformed", str(error))
        except AskFailed as error:
            return draft.outcome(ASK_FAILED, str(error))
        return draft.outcome("paired", "")

    async def _debug(self, draft: _Draft) -> None:
        code = await self._writer.solution(draft.instruction)
        await self._freeze_tests(draft, code)
        for iteration in range(self._settings.max_refinements + 1):
            if iteration:
                code = await self._repair(draft)
            if (await self._run(draft, iteration, code)).status == "pass":
                draft.final = iteration
                if not iteration:
                    raise _Ended("passed_first")
                return
        raise _Ended("never_passed", draft.steps[-1].error_type)

    async def _repair(self, draft: _Draft) -> str:
        last = draft.steps[-1]
        # A program that comes again would get the answer that it got before; without randomness no other is to be had.
        again = sum(step.code == last.code for step in draft.steps[:-1]) if self._settings.temperature else 0
        return await self._writer.repair(draft.instruction, last.code, last.traceback, draft.test_code, again)

    async def _sample(self, draft: _Draft) -> None:
        """Programs drawn independently; of those that pass one is final (after Code-Optimise and PLUM)."""
        drawn = [self._writer.solution(draft.instruction, sample) for sample in range(self._samples)]
        # All to their end: what is under way is paid, and of several failures the first sample's is told.
        codes = [_value(got) for got in await asyncio.gather(*drawn, return_exceptions=True)]
        await self._freeze_tests(draft, codes[0])
        verdicts = [self._verdicts.of(draft.program(code)) for code in codes]
        for sample, (code, verdict) in enumerate(zip(codes, await asyncio.gather(*verdicts), strict=True)):
            self._note(draft, Step.of(sample, code, verdict), verdict.failed or verdict.passed)
        passing = [step.iteration for step in draft.steps if step.status == "pass"]
        if not passing:
            raise _Ended("never_passed", draft.steps[-1].error_type)
        if len(passing) == len(draft.steps):
            raise _Ended("passed_first")
        draft.final = passing[draw(self._settings.seed, "final sample", draft.seed.task_id) % len(passing)]

    async def _freeze_tests(self, draft: _Draft, code: str) -> None:
        if not draft.test_code:
            draft.test_code = await self._writer.tests(draft.instruction, code, draft.seed.style)

    async def _run(self, draft: _Draft, iteration: int, code: str) -> Step:
        verdict = await self._verdicts.of(draft.program(code))
        step = Step.of(iteration, code, verdict)
        self._note(draft, step, verdict.failed or verdict.passed)
        return step

    @staticmethod
    def _note(draft: _Draft, step: Step, says_something: bool) -> None:
        draft.steps.append(step)
        # What is no verdict on the program is one on its tests, or on nothing.
        if not says_something:
            raise _Ended(step.status, step.traceback[:200])

    async def _check(self, draft: _Draft) -> None:
        """Whether tests and program are fit for pairs: what costs nothing first. A user's own tests are only run."""
        assert draft.final is not None
        code, settings, own_tests = draft.steps[draft.final].code, self._settings, bool(draft.seed.test_code)
        program = dataclasses.replace(draft.program(code), coverage=bool(settings.min_coverage) and not own_tests)
        verdict = await self._verdicts.of(program, check_flaky=True)
        if not verdict.passed:
            # It passed before, so whatever else it is now is chance too.
            raise _Ended(verdict.status if verdict.status in ENDS else "flaky", verdict.message)
        if own_tests:
            return
        if verdict.lines_covered is not None and verdict.lines_total:
            draft.coverage = round(verdict.lines_covered / verdict.lines_total, 4)
            if draft.coverage < settings.min_coverage:
                raise _Ended("low_coverage", f"{draft.coverage:.2f}")
        if settings.min_test_score:
            draft.scores = await self._writer.scores(draft.instruction, code, draft.test_code)
            worst = min(draft.scores, key=lambda name: draft.scores[name])
            if draft.scores[worst] < settings.min_test_score:
                raise _Ended("low_test_score", f"{worst} {draft.scores[worst]}")


def _value(got: str | BaseException) -> str:
    if isinstance(got, BaseException):
        raise got
    return got
