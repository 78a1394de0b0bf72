"""The HTTP interface: OpenAI's completions and chat completions over one sampler, models, health."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from iterpref_jax.decode.request import Request, derived_seed
from iterpref_jax.errors import UserError
from iterpref_jax.progress import say
from iterpref_jax.serve import faults, protocol
from iterpref_jax.serve.answers import ChatForm, CompletionForm
from iterpref_jax.serve.faults import ApiError
from iterpref_jax.serve.generation import USAGE, Generation
from iterpref_jax.serve.prompts import Prompts
from iterpref_jax.serve.protocol import Options
from iterpref_jax.serve.scheduler import Scheduler

logger = logging.getLogger(__name__)


def make_app(scheduler: Scheduler, prompts: Prompts, token_bytes: Sequence[bytes], model: str) -> ASGIApp:
    """Returns the ASGI app that serves `model`; its lifespan starts and ends the scheduler.

    `token_bytes` holds the bytes of every token id, for log-probs.
    """
    api = Api(scheduler, prompts, token_bytes, model)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        scheduler.start()
        yield
        await asyncio.to_thread(scheduler.close)

    routes = [
        Route("/v1/completions", api.completions, methods=["POST"]),
        Route("/v1/chat/completions", api.chat, methods=["POST"]),
        Route("/v1/models", api.models),
        Route("/v1/models/{name:path}", api.one_model),
        Route("/health", api.health),
    ]
    handlers: Any = {HTTPException: _no_route, ApiError: _refused, UserError: _bad_request, Exception: _failed}
    app = Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)
    app.router.redirect_slashes = False
    return RequestLog(app)


class Api:
    """The endpoints; see docs/serve.md for what each reads and answers."""

    def __init__(self, scheduler: Scheduler, prompts: Prompts, token_bytes: Sequence[bytes], model: str):
        self._scheduler, self._prompts, self._token_bytes, self._model = scheduler, prompts, token_bytes, model
        self._created = int(time.time())

    async def completions(self, request: HttpRequest) -> Generation:
        options, prompts = protocol.read_completion(protocol.parse(await request.body()))
        self._check_model(options.model)
        form = CompletionForm(self._model, logprobs=options.logprobs, include_usage=options.include_usage)
        return self._generation(options, [self._prompts.encode(prompt) for prompt in prompts], form, "prompt")

    async def chat(self, request: HttpRequest) -> Generation:
        options, chat = protocol.read_chat(protocol.parse(await request.body()))
        self._check_model(options.model)
        form = ChatForm(self._model, logprobs=options.logprobs, include_usage=options.include_usage)
        return self._generation(options, [self._prompts.render(chat)], form, "messages")

    async def models(self, request: HttpRequest) -> JSONResponse:
        return JSONResponse({"object": "list", "data": [self._about_model()]})

    async def one_model(self, request: HttpRequest) -> JSONResponse:
        self._check_model(request.path_params["name"])
        return JSONResponse(self._about_model())

    async def health(self, request: HttpRequest) -> JSONResponse:
        if self._scheduler.failed:
            raise faults.unavailable("The sampler failed; the server's log says why. Start it again")
        return JSONResponse({"status": "ok", "completions": self._scheduler.open, "limit": self._scheduler.limit})

    def _about_model(self) -> dict[str, Any]:
        return {"id": self._model, "object": "model", "created": self._created, "owned_by": "iterpref"}

    def _check_model(self, name: str) -> None:
        if name != self._model:
            raise faults.unknown_model(name, self._model)

    def _generation(
        self, options: Options, prompts: Sequence[tuple[int, ...]], form: CompletionForm, param: str
    ) -> Generation:
        rooms = [self._prompts.room(prompt, options.max_tokens, param) for prompt in prompts]
        seed = secrets.randbits(63) if options.seed is None else options.seed
        requests = [
            Request(
                prompt=prompt,
                max_tokens=room,
                temperature=options.temperature,
                top_p=options.top_p,
                top_k=options.top_k,
                stop=options.stop,
                seed=derived_seed(seed, number * options.n + choice),
            )
            for number, (prompt, room) in enumerate(zip(prompts, rooms, strict=True))
            for choice in range(options.n)
        ]
        return Generation(
            self._scheduler,
            requests,
            form,
            prompt_tokens=sum(map(len, prompts)),
            stream=options.stream,
            include_usage=options.include_usage,
            table=self._token_bytes if options.logprobs else None,
        )


class RequestLog:
    """Prints one plain line a request; what nobody handled is logged with its traceback."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange, began = _Exchange(receive, send), time.monotonic()
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            # While it was sending its body: there is nobody to answer, and the line says so.
            assert exchange.left
        except Exception:
            # The client has its 500 already.
            logger.exception("%s %s failed", scope["method"], scope["path"])
        counts = scope.get(USAGE)
        tokens = f", {counts['prompt_tokens']} + {counts['completion_tokens']} tokens" if counts else ""
        seconds = time.monotonic() - began
        say(f"{time.strftime('%H:%M:%S')} {scope['method']} {scope['path']} {exchange}{tokens}, {seconds:.2f} s")


class _Exchange:
    """Watches one request's messages: the status of its answer, and whether the client left before the end."""

    def __init__(self, receive: Receive, send: Send):
        self._receive, self._send = receive, send
        self.status, self.complete, self.left = "", False, False

    async def receive(self) -> Message:
        message = await self._receive()
        # Servers say "disconnect" after a complete answer, too.
        self.left = self.left or (message["type"] == "http.disconnect" and not self.complete)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = str(message["status"])
        elif not message.get("more_body", False):
            self.complete = True
        await self._send(message)

    def __str__(self) -> str:
        return f"{self.status} client left".strip() if self.left else self.status


def _refused(request: HttpRequest, error: ApiError) -> JSONResponse:
    return JSONResponse(error.body(), error.status)


def _bad_request(request: HttpRequest, error: UserError) -> JSONResponse:
    return JSONResponse(ApiError(str(error), code="invalid_value").body(), 400)


def _failed(request: HttpRequest, error: Exception) -> JSONResponse:
    return JSONResponse(faults.internal().body(), 500)


def _no_route(request: HttpRequest, error: HTTPException) -> JSONResponse:
    message = f"{error.detail}: {request.method} {request.url.path}; see GET /v1/models and docs/serve.md"
    code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code)
    return JSONResponse(ApiError(message, code=code).body(), error.status_code, error.headers)
