"""One request on the wire: every sampling field written out, the stream read and checked for being whole."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from iterpref_jax.codeflow.endpoint.asks import Ask
from iterpref_jax.codeflow.endpoint.policy import Broken
from iterpref_jax.codeflow.endpoint.settings import EndpointSettings
from iterpref_jax.errors import UserError

NO_KEY = "none"  # for local servers, which want a header and read nothing in it
CONNECT_S = 10.0


def body_of(ask: Ask, settings: EndpointSettings, *, usage: bool) -> tuple[str, dict[str, Any]]:
    """Returns the path and the JSON of the request; `usage` asks for token counts at the end of the stream."""
    sampling = ask.sampling
    body: dict[str, Any] = {
        "model": settings.model,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
        "n": 1,
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "stream": True,
        **settings.extra,
    }
    # Servers refuse an empty list of stops and a seed of null.
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if ask.seed is not None:
        body["seed"] = ask.seed
    if usage:
        body["stream_options"] = {"include_usage": True}
    if ask.prompt is not None:
        return "/completions", body | {"prompt": ask.prompt}
    if ask.schema is not None:
        schema = {"name": "answer", "schema": ask.schema, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    if ask.continue_final:
        body |= {"add_generation_prompt": False, "continue_final_message": True}
    return "/chat/completions", body | {"messages": list(ask.messages)}


class Received:
    """What has come of one answer."""

    def __init__(self):
        self.pieces: list[str] = []
        self.finish_reason, self.model = "", ""
        self.usage: tuple[int, int] | None = None
        self.begun = False

    def add(self, chunk: Any) -> None:
        """Takes over one event of the stream. Raises Broken for what is no chunk of OpenAI's form."""
        if not isinstance(chunk, dict):
            raise Broken("truncated", f"an event of the stream is no object: {str(chunk)[:80]}")
        self.model = str(chunk.get("model") or self.model)
        self.usage = _counts(chunk.get("usage")) or self.usage
        choices = chunk.get("choices")
        for choice in choices if isinstance(choices, list) else []:
            self._add_choice(choice)

    def check_whole(self) -> None:
        """Raises Broken unless the model came to an end of its own or of `max_tokens`."""
        if not self.pieces:
            # An empty text is an answer, none at all is not: the model has said nothing.
            raise Broken("empty", f"the answer holds no {'text' if self.finish_reason else 'choice'}")
        if not self.finish_reason:
            raise Broken("truncated", "the stream ended before the answer did")

    @property
    def text(self) -> str:
        """All text so far, as valid Unicode: halves of a surrogate pair that came apart are joined, others replaced."""
        return "".join(self.pieces).encode("utf-16", "surrogatepass").decode("utf-16", "replace")

    def _add_choice(self, choice: Any) -> None:
        if not isinstance(choice, dict):
            raise Broken("truncated", f"a choice is no object: {str(choice)[:80]}")
        delta = choice.get("delta")
        content = delta.get("content") if isinstance(delta, dict) else choice.get("text")
        self.pieces.extend(_texts(content))
        self.finish_reason = str(choice.get("finish_reason") or self.finish_reason)


def _texts(content: Any) -> list[str]:
    """Returns the text of a piece; of one in parts, as some servers send it, the texts among them."""
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    texts = [part.get("text") for part in parts if isinstance(part, Mapping) and part.get("type") == "text"]
    return [text for text in texts if isinstance(text, str)]


def _counts(usage: Any) -> tuple[int, int] | None:
    """Returns (prompt, completion) tokens; None of what a server says that cannot be."""
    if not isinstance(usage, Mapping):
        return None
    found = usage.get("prompt_tokens"), usage.get("completion_tokens")
    prompt, completion = (value if type(value) is int and value >= 0 else None for value in found)
    return None if prompt is None or completion is None else (prompt, completion)


class Wire:
    """The connections to all servers. Made by `open_wire`."""

    def __init__(self, settings: EndpointSettings, clients: Mapping[str, Any], api_key: str):
        self._settings, self._clients, self._api_key = settings, clients, api_key
        # Servers that know no stream_options.
        self._silent: set[str] = set()

    async def send(self, url: str, ask: Ask, received: Received, alive: Callable[[], None]) -> None:
        """Asks one server and fills `received`; calls `alive` when an answer begins. Raises what the client raises."""
        import openai

        try:
            await self._send(url, ask, received, alive)
        except openai.BadRequestError as error:
            if url in self._silent or "stream_options" not in str(error):
                raise
            self._silent.add(url)
            await self._send(url, ask, received, alive)

    async def _send(self, url: str, ask: Ask, received: Received, alive: Callable[[], None]) -> None:
        import openai

        path, body = body_of(ask, self._settings, usage=url not in self._silent)
        async with asyncio.timeout(self._settings.request_s):
            # Plain dicts instead of models: a chunk is read in a tenth of the time, and nothing is guessed.
            stream = await self._clients[url].post(
                path, body=body, cast_to=object, stream=True, stream_cls=openai.AsyncStream[object]
            )
            async with stream:
                received.begun = True
                kind = stream.response.headers.get("content-type", "none")
                if not kind.startswith("text/event-stream"):
                    raise Broken(
                        "content_type",
                        f"wanted a stream of events (text/event-stream), got {kind[:80]}; is this the address of an "
                        "OpenAI-compatible API that can stream, without a portal before it?",
                    )
                async for chunk in stream:
                    alive()
                    received.add(chunk)
        received.check_whole()

    def without_secrets(self, message: str) -> str:
        """Returns a message without the key, which servers like to repeat."""
        return message if self._api_key == NO_KEY else message.replace(self._api_key, "[key]")


@contextlib.asynccontextmanager
async def open_wire(settings: EndpointSettings) -> AsyncIterator[Wire]:
    """Opens the connections for an `async with` block. Raises UserError without the packages of the extra."""
    try:
        import aiohttp  # noqa: F401
        import openai
    except ImportError as error:
        raise UserError(f"asking a model needs {error.name}: pip install 'iterpref_jax[generate]'") from error
    api_key = (os.environ.get(settings.api_key_env) if settings.api_key_env else None) or NO_KEY
    # `read` is the longest time between two bytes.
    timeout = openai.Timeout(settings.request_s, connect=min(CONNECT_S, settings.stall_s), read=settings.stall_s)
    async with openai.DefaultAioHttpClient(timeout=timeout) as http:
        clients = {
            url: openai.AsyncOpenAI(base_url=url, api_key=api_key, max_retries=0, timeout=timeout, http_client=http)
            for url in settings.base_urls
        }
        yield Wire(settings, clients, api_key)
