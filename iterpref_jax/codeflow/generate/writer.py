"""The questions that are asked of the model, each from its prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from iterpref_jax.codeflow.endpoint import Answer, Client, Sampling
from iterpref_jax.codeflow.endpoint.asks import canonical
from iterpref_jax.codeflow.generate import answers, features
from iterpref_jax.codeflow.generate.prompts import Prompt
from iterpref_jax.codeflow.generate.settings import STYLES, GenerateSettings

Value = TypeVar("Value")
_OPEN_ENDED = ("instruction", "solution", "tests", "repair")


class Writer:
    """Writes tasks, programs, tests and judgements. Its methods raise AskFailed, MalformedAnswer, BudgetSpent and
    UserError as `Client.ask_json` does."""

    def __init__(self, client: Client, prompts: Mapping[str, Prompt], settings: GenerateSettings):
        self._client, self._prompts, self._settings = client, prompts, settings
        # Stored with the pairs that it kept.
        self.judge = {"model": client.model, "prompt_version": prompts["judge_pair"].version}
        self._creative = self._sampling(settings.temperature, settings.top_p)
        self._strict = self._sampling(settings.judge_temperature, 1.0)

    async def instruction(self, paths: tuple[tuple[str, ...], ...], number: int) -> str:
        """Returns a task about features; `number` tells apart tasks of the same ones."""
        listed = "\n".join(f"- {' / '.join(path)}" for path in paths)
        return await self._ask("instruction", answers.instruction, {"features": listed}, sample=number)

    async def solution(self, instruction: str, sample: int = 0) -> str:
        return await self._ask("solution", answers.program, {"instruction": instruction}, sample=sample)

    async def tests(self, instruction: str, code: str, style: str) -> str:
        """Returns tests for a program of which the model is shown no more than the interface."""
        least = self._settings.min_checks
        values = {"instruction": instruction, "interface": answers.interface(code)}
        values |= {"style": STYLES[style], "checks": str(least)}
        return await self._ask("tests", answers.test_writer(code, least, style), values)

    async def repair(self, instruction: str, code: str, feedback: str, tests: str, sample: int = 0) -> str:
        values = {"instruction": instruction, "code": code, "feedback": feedback, "tests": tests}
        return await self._ask("repair", answers.program, values, sample=sample)

    async def scores(self, instruction: str, code: str, tests: str) -> dict[str, int]:
        values = {"instruction": instruction, "code": code, "tests": tests}
        return await self._ask("score_tests", answers.scores, values, self._strict)

    async def differ(self, instruction: str, first: str, second: str) -> bool:
        """Returns whether two programs differ in logic, asked once, in this order."""
        values = {"instruction": instruction, "first": first, "second": second}
        return await self._ask("judge_pair", answers.differ, values, self._strict)

    async def more_features(self, part: features.Tree, number: int) -> features.Tree:
        """Returns a part of the tree with more features."""
        return await self._ask("evolve_features", answers.feature_tree, {"tree": canonical(part)}, sample=number)

    async def _ask(
        self,
        name: str,
        parse: Callable[[str], Value],
        values: Mapping[str, str],
        sampling: Sampling | None = None,
        *,
        sample: int = 0,
    ) -> Value:
        prompt = self._prompts[name]
        ask = prompt.ask(values, sampling or self._creative, sample)

        def read(answer: Answer) -> Value:
            text = prompt.whole(answer)
            # JSON says by itself whether it is whole.
            if answer.finish_reason == "length" and name in _OPEN_ENDED:
                answers.check_whole(name, text)
            return parse(text)

        return await self._client.ask_json(ask, read)

    def _sampling(self, temperature: float, top_p: float) -> Sampling:
        settings = self._settings
        return Sampling(temperature=temperature, top_p=top_p, max_tokens=settings.max_tokens, seed=settings.seed)
