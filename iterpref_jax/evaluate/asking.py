"""Answers of an endpoint that speaks OpenAI's protocol, through the client and the journal of `codeflow.endpoint`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from iterpref_jax.codeflow.endpoint import Ask, AskFailed, Client, EndpointSettings, open_client, open_journal
from iterpref_jax.codeflow.endpoint import Sampling as Drawn
from iterpref_jax.errors import UserError
from iterpref_jax.evaluate.generators import AskOne, Endpoint, Sampling, Wanted, Written

JOURNAL = "answers.sqlite"
# Part of every key: another one asks anew.
PROMPT_VERSION = "evaluate-1"
# What OpenAI's protocol takes. The last ones are the likeliest; all are looked for in what comes back.
MOST_STOPS = 4


def endpoint(settings: EndpointSettings, folder: Path) -> Endpoint:
    """Returns the generator; what was paid for lies in the folder's journal before it is used."""

    @contextlib.asynccontextmanager
    async def opened() -> AsyncIterator[AskOne]:
        with open_journal(folder / JOURNAL) as journal:
            async with open_client(settings, journal) as client:
                yield _asker(client)

    return Endpoint(opened, settings.concurrency)


def _asker(client: Client) -> AskOne:
    async def ask(wanted: Wanted, sampling: Sampling) -> Written:
        try:
            answer = await client.ask(asked(wanted, sampling))
        except AskFailed as error:
            raise UserError(
                f"task {wanted.task_id}, sample {wanted.sample}: the endpoint has no answer: {error}"
            ) from error
        text = ended(answer.text, wanted.shown.stops)
        return Written(text=text, finish_reason=answer.finish_reason if text == answer.text else "stop")

    return ask


def ended(text: str, stops: Sequence[str]) -> str:
    """Returns a text up to the first of its stop strings.

    >>> ended("    return a\\n\\ndef b():", ["\\ndef ", "\\nclass "])
    '    return a\\n'
    """
    return text[: min((text.find(stop) for stop in stops if stop in text), default=len(text))]


def asked(wanted: Wanted, sampling: Sampling) -> Ask:
    """Returns the request: chat messages, whose last one the server continues if the answer is begun; or plain text."""
    shown = wanted.shown
    messages = [{"role": role, "content": content} for role, content in shown.messages]
    if shown.prefill:
        messages.append({"role": "assistant", "content": shown.prefill})
    return Ask(
        messages=tuple(messages),
        prompt=None if messages else shown.text,
        sampling=Drawn(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_new_tokens,
            stop=shown.stops[-MOST_STOPS:],
            seed=sampling.seed,
        ),
        sample=wanted.sample,
        purpose="evaluate",
        prompt_version=PROMPT_VERSION,
        continue_final=bool(shown.prefill),
    )
