"""Asks a model: from the journal if the answer is there, else over the network, journalled before it is returned."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import datetime
import itertools
import random
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, NoReturn, TypeVar

from iterpref_jax.codeflow.endpoint import policy, spending
from iterpref_jax.codeflow.endpoint.asks import Answer, Ask
from iterpref_jax.codeflow.endpoint.journal import ANSWER, WASTE, Journal
from iterpref_jax.codeflow.endpoint.policy import AskFailed, Failure
from iterpref_jax.codeflow.endpoint.pool import Lease, Pool
from iterpref_jax.codeflow.endpoint.settings import EndpointSettings, check_settings
from iterpref_jax.codeflow.endpoint.spending import Accounts, Cost, Spending
from iterpref_jax.codeflow.endpoint.wire import Received, Wire, open_wire
from iterpref_jax.errors import UserError

Value = TypeVar("Value")

_ASK_AGAIN = "Your answer could not be read: {reason}. Answer again, completely, in the form that was asked for."


class MalformedAnswer(Exception):
    """No answer to one ask could be read, re-asks included; the message holds the last reason."""


class Client:
    """Asks a model. Made by `open_client`; belongs to one event loop, where any number of asks may run at once."""

    def __init__(self, settings: EndpointSettings, journal: Journal, wire: Wire, jitter: Callable[[], float]):
        self.accounts = Accounts()
        self._settings, self._journal, self._wire, self._jitter = settings, journal, wire, jitter
        self._pool, self._spending = Pool(settings), Spending(settings, journal)
        self._running: dict[str, asyncio.Task[Answer]] = {}
        self._askers: dict[str, int] = {}
        # Cancelled ones too, until they have ended.
        self._tasks: set[asyncio.Task[Answer]] = set()
        # A sync of the disk takes milliseconds, in which streams go on.
        self._writer = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="journal")
        # Why an answer could not be kept; who had asked may be gone by then.
        self._lost: UserError | None = None

    @property
    def model(self) -> str:
        """The model that is asked, as the settings name it."""
        return self._settings.model

    def key(self, ask: Ask) -> str:
        """Returns the key of the ask's answer in the journal, among those of kind `ANSWER`."""
        return ask.key(self._settings.model, self._settings.extra)

    async def ask(self, ask: Ask) -> Answer:
        """Returns the answer to `ask`; equal asks at the same time are sent once.

        Raises:
            AskFailed: this ask cannot be answered (too long, failed `tries` times); others may be.
            BudgetSpent: the call could pass a limit; it was not sent.
            UserError: the server refuses the request, or no server has answered for `give_up_s`.
        """
        key = self.key(ask)
        if (kept := self._journal.get(ANSWER, key)) is not None:
            self.accounts.from_journal += 1
            return Answer(**{field.name: kept[field.name] for field in dataclasses.fields(Answer)})
        if key not in self._running:
            self._running[key] = self._start(self._pay(ask, key))
        self._askers[key] = self._askers.get(key, 0) + 1
        task = self._running[key]
        try:
            # One of several askers may be cancelled; the request goes on for the others.
            return await asyncio.shield(task)
        finally:
            self._askers[key] -= 1
            if not self._askers[key]:
                del self._askers[key], self._running[key]
                task.cancel()

    async def ask_json(self, ask: Ask, parse: Callable[[Answer], Value]) -> Value:
        """Returns `parse(answer)`; if that raises ValueError, asks again, up to `reasks` times.

        The model is told the reason. Raises MalformedAnswer when no answer could be read, and what `ask` raises.
        """
        current = ask
        for attempt in itertools.count(1):
            answer = await self.ask(current)
            try:
                return parse(answer)
            except ValueError as error:
                spending.count(self.accounts.malformed, ask.purpose)
                reason = f"{error}{' (it was cut at max_tokens)' if answer.finish_reason == 'length' else ''}"
                if attempt > self._settings.reasks:
                    raise MalformedAnswer(f"{ask.purpose}: {reason}") from error
            self.accounts.reasks += 1
            current = asked_again(ask, answer, reason, attempt)
        raise AssertionError("the count does not end")

    async def close(self) -> None:
        """Cancels what runs and waits until what came is in the journal; raises UserError if some cannot be kept."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._writer.shutdown()
        if self._lost is not None:
            raise self._lost

    def _start(self, paying: Coroutine[Any, Any, Answer]) -> asyncio.Task[Answer]:
        task = asyncio.create_task(paying)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _pay(self, ask: Ask, key: str) -> Answer:
        """Sends the ask until it is answered or given up."""
        failed = 0
        for number in itertools.count():
            outcome = await self._try(ask, key, number)
            if isinstance(outcome, Answer):
                self.accounts.paid(ask.purpose, outcome)
                return outcome
            if outcome.then != "again":
                self._end(outcome)
            failed += outcome.of_ask
            if failed >= self._settings.tries:
                self._end(dataclasses.replace(outcome, then="drop"))
            spending.count(self.accounts.retries, outcome.reason)
            await asyncio.sleep(self._pause(number))
        raise AssertionError("the count does not end")

    async def _try(self, ask: Ask, key: str, number: int) -> Answer | Failure:
        """Sends the ask once, when there is leave to, and journals what came of it."""
        estimate = spending.estimated_prompt_tokens(ask) + ask.sampling.max_tokens
        lease = await self._pool.acquire(estimate, again=number > 0)
        try:
            reserved = await self._spending.reserve(ask)
            received, spent = Received(), Cost()
            try:
                outcome = await self._send(ask, lease, received)
                answer = self._answer(ask, received)
                if received.pieces or received.usage or isinstance(outcome, Answer):
                    spent = Cost(calls=1, tokens=answer.prompt_tokens + answer.completion_tokens, usd=answer.cost)
            finally:
                self._spending.settle(reserved, spent)
            # Before the lease ends: a crash loses no more answers than requests may run.
            if isinstance(outcome, Answer):
                await self._keep(ANSWER, key, dataclasses.asdict(answer) | {"purpose": ask.purpose})
            elif spent.calls:
                # Most providers bill what they had sent when the connection broke.
                waste = dataclasses.asdict(answer) | {"purpose": ask.purpose, "reason": outcome.reason}
                await self._keep(WASTE, f"{key}/{secrets.token_hex(8)}", waste)
        finally:
            self._pool.release(lease)
        return outcome

    async def _send(self, ask: Ask, lease: Lease, received: Received) -> Answer | Failure:
        self.accounts.requests += 1
        try:
            await self._wire.send(lease.replica.url, ask, received, lambda: self._pool.alive(lease))
        except Exception as error:
            now = datetime.datetime.now(datetime.UTC)
            failure = policy.failure_of(error, begun=received.begun, now=now)
            if failure is None:
                raise
            failure = dataclasses.replace(failure, message=self._wire.without_secrets(failure.message))
            if failure.then == "again":
                # A server that answers others, but not this ask, fails for the ask's sake.
                well = self._pool.failed(lease, failure, self._pause)
                failure = dataclasses.replace(failure, of_ask=failure.of_ask or well)
            return dataclasses.replace(failure, message=f"{lease.replica.url}: {failure.message}")
        answer = self._answer(ask, received)
        self._pool.succeeded(lease, answer.prompt_tokens + answer.completion_tokens)
        return answer

    def _answer(self, ask: Ask, received: Received) -> Answer:
        text = received.text
        counted = received.usage or (spending.estimated_prompt_tokens(ask), spending.estimated_tokens(text))
        return Answer(
            text=text,
            finish_reason=received.finish_reason,
            prompt_tokens=counted[0],
            completion_tokens=counted[1],
            model=received.model or self._settings.model,
            cost=self._spending.usd(*counted),
            estimated=received.usage is None,
        )

    async def _keep(self, kind: str, key: str, value: dict[str, Any]) -> None:
        # Once submitted it is written, also when this task is cancelled: `close` waits for it. Without the shield the
        # cancellation would take it out of the writer's queue.
        writing = self._writer.submit(self._store, kind, key, value)
        await asyncio.shield(asyncio.wrap_future(writing))
        if self._lost is not None:
            raise self._lost

    def _store(self, kind: str, key: str, value: dict[str, Any]) -> None:
        try:
            self._journal.put(kind, key, value)
        except UserError as error:
            self._lost = error

    def _pause(self, number: int) -> float:
        settings = self._settings
        return policy.backoff(number, settings.backoff_s, settings.backoff_max_s, self._jitter())

    def _end(self, failure: Failure) -> NoReturn:
        """Raises what a failure means that is not tried again."""
        spending.count(self.accounts.failed, failure.reason)
        if failure.then == "drop":
            raise AskFailed(failure.reason, failure.message)
        raise UserError(
            f"endpoint: the server refuses the request ({failure.status}): {failure.message}; {self._advice(failure)}"
        )

    def _advice(self, failure: Failure) -> str:
        if failure.status in (401, 403):
            name = self._settings.api_key_env
            return f"set the environment variable {name} (endpoint.api_key_env) to a key that may use this model"
        if failure.status == 404:
            return f"is {self._settings.model!r} (endpoint.model) served there, and do endpoint.base_urls end in /v1?"
        if failure.status in (402, 429):
            return "the account has nothing left; all answers so far are in the journal: pay and start the same command"
        return "mend config.endpoint or the prompt; all answers so far are in the journal"


def asked_again(ask: Ask, answer: Answer, reason: str, attempt: int) -> Ask:
    """Returns the ask that tells the model why `answer` could not be read; without messages, another draw."""
    if ask.prompt is not None:
        return dataclasses.replace(ask, attempt=attempt)
    *before, last = ask.messages
    said = {"role": "assistant", "content": answer.text}
    complaint = {"role": "user", "content": _ASK_AGAIN.format(reason=reason.rstrip("."))}
    if ask.continue_final:
        said = {**last, "content": last["content"] + answer.text}
        return dataclasses.replace(ask, messages=(*before, said, complaint, last), attempt=attempt)
    return dataclasses.replace(ask, messages=(*ask.messages, said, complaint), attempt=attempt)


@contextlib.asynccontextmanager
async def open_client(
    settings: EndpointSettings, journal: Journal, *, jitter: Callable[[], float] = random.random
) -> AsyncIterator[Client]:
    """Opens a client for an `async with` block; leaving it cancels what runs, and keeps what came.

    `jitter` draws from [0, 1) for the pauses before retries. Raises UserError for settings that cannot work.
    """
    check_settings(settings)
    async with open_wire(settings) as wire:
        client = Client(settings, journal, wire, jitter)
        try:
            yield client
        finally:
            await client.close()
