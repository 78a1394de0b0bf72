"""Where samples come from: the built-in sampler, or an endpoint that speaks OpenAI's protocol."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from iterpref_jax.errors import UserError
from iterpref_jax.evaluate.prompts import Shown


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How answers are drawn; `temperature` 0 is greedy. `seed` and a sample's number give each its own draw."""

    temperature: float
    top_p: float
    max_new_tokens: int
    seed: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted:
    """Number `sample` of the answers to what is shown of a task, which messages call `task_id`."""

    shown: Shown
    task_id: str
    task: int
    sample: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Written:
    """What a model wrote; `finish_reason` is "stop" or "length"."""

    text: str
    finish_reason: str


class Generator(Protocol):
    """A source of answers."""

    def generate(self, wanted: Sequence[Wanted], sampling: Sampling) -> Iterator[tuple[int, Written]]:
        """Yields (index, answer) as answers end."""
        ...


class BuiltIn:
    """Our own sampler (`decode.sampler.Sampler`) with the model's tokenizer.

    `opened()` reads the weights and returns the sampler, once it is known that every prompt fits in its `context`.
    """

    def __init__(self, opened: Callable[[], Any], tokenizer: Any, context: int):
        self._opened, self._tokenizer, self._context = opened, tokenizer, context

    def generate(self, wanted: Sequence[Wanted], sampling: Sampling) -> Iterator[tuple[int, Written]]:
        from iterpref_jax.decode.request import Request, derived_seed

        prompts = [self._encode(each.shown) for each in wanted]
        self._check_fit(wanted, [len(prompt) for prompt in prompts], sampling.max_new_tokens)
        requests = [
            Request(
                prompt=prompt,
                max_tokens=sampling.max_new_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                stop=each.shown.stops,
                # Of the task and the sample alone: a run that goes on draws what it would have drawn.
                seed=derived_seed(derived_seed(sampling.seed, each.task), each.sample),
            )
            for each, prompt in zip(wanted, prompts, strict=True)
        ]
        for index, completion in self._opened().generate(requests):
            yield index, Written(text=completion.text, finish_reason=completion.finish_reason)

    def _check_fit(self, wanted: Sequence[Wanted], lengths: Sequence[int], max_new_tokens: int) -> None:
        longest = max(range(len(wanted)), key=lengths.__getitem__)
        if (need := lengths[longest] + max_new_tokens) > self._context:
            raise UserError(
                f"the prompt of task {wanted[longest].task_id} has {lengths[longest]} tokens, an answer up to "
                f"{max_new_tokens}: together more than decode.context, {self._context}; set "
                f"--config.decode.context={need}, or fewer with --config.evaluate.max_new_tokens"
            )

    def _encode(self, shown: Shown) -> list[int]:
        if not shown.messages:
            return self._tokenizer.encode(shown.text)
        if not self._tokenizer.chat_template:
            raise UserError("the model's tokenizer has no chat template: set evaluate.prompt_style to base or raw")
        messages = [{"role": role, "content": content} for role, content in shown.messages]
        text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        # The template writes the special tokens itself.
        return self._tokenizer.encode(text + shown.prefill, add_special_tokens=False)


# Asks for number `sample` of the answers to what is shown.
AskOne = Callable[[Wanted, Sampling], Awaitable[Written]]


class Endpoint:
    """An endpoint behind `opened`, an async context manager of a function that asks for one answer.

    At most `concurrency` answers are asked for at a time.
    """

    def __init__(self, opened: Callable[[], AbstractAsyncContextManager[AskOne]], concurrency: int):
        self._opened, self._concurrency = opened, concurrency

    def generate(self, wanted: Sequence[Wanted], sampling: Sampling) -> Iterator[tuple[int, Written]]:
        with asyncio.Runner() as runner:
            opened = self._opened()
            ask = runner.run(opened.__aenter__())
            try:
                yield from self._answers(runner, ask, wanted, sampling)
            finally:
                runner.run(opened.__aexit__(None, None, None))

    def _answers(
        self, runner: asyncio.Runner, ask: AskOne, wanted: Sequence[Wanted], sampling: Sampling
    ) -> Iterator[tuple[int, Written]]:
        loop, left = runner.get_loop(), iter(enumerate(wanted))
        going: dict[asyncio.Task[Written], int] = {}
        while True:
            for index, each in left:
                going[loop.create_task(_asked(ask, each, sampling))] = index
                if len(going) == self._concurrency:
                    break
            if not going:
                return
            done, _ = runner.run(_first(going))
            for task in done:
                yield going.pop(task), task.result()


async def _asked(ask: AskOne, each: Wanted, sampling: Sampling) -> Written:
    return await ask(each, sampling)


async def _first(going: dict[asyncio.Task[Written], int]) -> Any:
    return await asyncio.wait(going, return_when=asyncio.FIRST_COMPLETED)
