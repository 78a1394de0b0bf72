"""One answer, whole or streamed: its completions run while the client is there, and no longer."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, MutableMapping, Sequence
from typing import Any

from starlette.responses import JSONResponse

from iterpref_jax.decode.request import Request
from iterpref_jax.serve import faults
from iterpref_jax.serve.answers import Choice, CompletionForm, usage
from iterpref_jax.serve.faults import ApiError
from iterpref_jax.serve.scheduler import Job, Scheduler

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# The key of the ASGI scope under which the log of requests finds an answer's token counts.
USAGE = "iterpref.usage"
# The last one asks nginx not to gather the stream.
_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class Generation:
    """The ASGI response of one request; `table` holds the bytes of every token, or None without log-probs."""

    def __init__(
        self,
        scheduler: Scheduler,
        requests: Sequence[Request],
        form: CompletionForm,
        *,
        prompt_tokens: int,
        stream: bool,
        include_usage: bool,
        table: Sequence[bytes] | None,
    ):
        self._scheduler, self._requests, self._form = scheduler, requests, form
        self._prompt_tokens, self._stream, self._include_usage = prompt_tokens, stream, include_usage
        self._choices = [Choice(index, table) for index in range(len(requests))]
        self._streaming = False

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answers; what fails before the first byte is raised, later it is the last event of the stream.

        Raises:
            UserError, ApiError: the sampler refuses a request, or cannot take it.
        """
        try:
            await while_connected(receive, self._answer(scope, receive, send))
        except asyncio.CancelledError:
            # Nothing but the end of the server cancels the task of a request.
            await self._fail(faults.unavailable("The server is shutting down"), send)
        except ApiError as error:
            await self._fail(error, send)
        except Exception:
            if self._streaming:
                await self._fail(faults.internal(), send)
            raise
        finally:
            scope[USAGE] = self._usage()

    async def _answer(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        async with self._scheduler.running(self._requests) as job:
            if self._stream:
                await self._send_events(job, send)
                return
            async for number, piece in job.pieces():
                self._choices[number].add(piece)
        await JSONResponse(self._form.whole(self._choices, self._usage()))(scope, receive, send)

    async def _send_events(self, job: Job, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": _STREAM_HEADERS})
        self._streaming = True
        async for event in self._events(job):
            await send({"type": "http.response.body", "body": _event(json.dumps(event)), "more_body": True})
        await send({"type": "http.response.body", "body": _event("[DONE]")})

    async def _events(self, job: Job) -> AsyncIterator[dict[str, Any]]:
        for choice in self._choices:
            for event in self._form.opening(choice.index):
                yield event
        async for number, piece in job.pieces():
            for event in self._form.chunks(number, piece, self._choices[number].add(piece)):
                yield event
        if self._include_usage:
            yield self._form.usage_chunk(self._usage())

    async def _fail(self, error: ApiError, send: Send) -> None:
        if not self._streaming:
            raise error
        await send({"type": "http.response.body", "body": _event(json.dumps(error.body()))})

    def _usage(self) -> dict[str, int]:
        return usage(self._prompt_tokens, self._choices)


async def while_connected(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Runs `work` to its end, or cancels it when the client hangs up; raises what it raises."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_hung_up(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.wait((task, gone))
    with contextlib.suppress(asyncio.CancelledError):
        task.result()


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _event(data: str) -> bytes:
    return f"data: {data}\n\n".encode()
