"""Reads the JSON of a request: every field is read, known to change nothing, or refused by name."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

from iterpref_jax.errors import did_you_mean
from iterpref_jax.serve.faults import ApiError

Read = Callable[[str, Any], Any]
Prompt = str | tuple[int, ...]

MAX_CHOICES = 128
MAX_STOPS = 4
# OpenAI's default of /v1/completions; chat has none and goes on to the end of the context.
COMPLETION_TOKENS = 16
ROLES = ("system", "user", "assistant")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What both endpoints read, with OpenAI's defaults; `max_tokens` None means up to the end of the context."""

    model: str
    n: int
    max_tokens: int | None
    temperature: float
    top_p: float
    top_k: int
    seed: int | None
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool
    logprobs: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chat:
    """Messages (`role`, `content`), and how the answer follows them: as a new message whose beginning the template
    writes (`begins_answer`, the usual way), or as more of the last message (`continues_last`)."""

    messages: tuple[dict[str, str], ...]
    begins_answer: bool
    continues_last: bool


def parse(body: bytes) -> dict[str, Any]:
    """Returns the JSON object of a request's body."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(f"The body is not JSON: {error}", code="invalid_json") from error
    if not isinstance(content, dict):
        raise ApiError(f"The body must be a JSON object, not {_kind(content)}", code="invalid_json")
    return content


def read_completion(content: Mapping[str, Any]) -> tuple[Options, tuple[Prompt, ...]]:
    """Returns the options of /v1/completions and its prompts. Raises ApiError (400)."""
    found = _read(content, _COMPLETION)
    prompts = _required(found, "prompt")
    return _options(found, found.get("max_tokens", COMPLETION_TOKENS), "logprobs" in found), prompts


def read_chat(content: Mapping[str, Any]) -> tuple[Options, Chat]:
    """Returns the options of /v1/chat/completions and its messages. Raises ApiError (400)."""
    found = _read(content, _CHAT)
    chat = _chat(found)
    if "max_tokens" in found and "max_completion_tokens" in found:
        raise ApiError("Give max_tokens or max_completion_tokens, not both", param="max_tokens")
    if "top_logprobs" in found and not found.get("logprobs"):
        raise ApiError("'top_logprobs' has no effect without 'logprobs': true", param="top_logprobs")
    limit = found.get("max_completion_tokens", found.get("max_tokens"))
    return _options(found, limit, found.get("logprobs", False)), chat


def _chat(found: Mapping[str, Any]) -> Chat:
    chat = Chat(
        messages=_required(found, "messages"),
        begins_answer=found.get("add_generation_prompt", True),
        continues_last=found.get("continue_final_message", False),
    )
    if chat.continues_last and chat.begins_answer:
        message = "'continue_final_message': true needs 'add_generation_prompt': false: no other message begins"
        raise ApiError(message, param="continue_final_message")
    if chat.continues_last and (role := chat.messages[-1]["role"]) != "assistant":
        message = f"'continue_final_message' goes on with an assistant's message; the last one is of the role {role!r}"
        raise ApiError(message, param="continue_final_message")
    return chat


def _options(found: Mapping[str, Any], max_tokens: int | None, logprobs: bool) -> Options:
    if "stream_options" in found and not found.get("stream"):
        raise ApiError("'stream_options' has no effect without 'stream': true", param="stream_options")
    return Options(
        model=_required(found, "model"),
        n=found.get("n", 1),
        max_tokens=max_tokens,
        temperature=found.get("temperature", 1.0),
        top_p=found.get("top_p", 1.0),
        top_k=found.get("top_k", 0),
        seed=found.get("seed"),
        stop=found.get("stop", ()),
        stream=found.get("stream", False),
        include_usage=found.get("stream_options", False),
        logprobs=logprobs,
    )


def _read(content: Mapping[str, Any], fields: Mapping[str, Read], where: str = "") -> dict[str, Any]:
    """Returns the checked values; null means that a field was left out, as in OpenAI's API."""
    for name in content:
        if name not in fields:
            hint = did_you_mean(name, fields)
            raise ApiError(f"Unknown field {where + name!r}{hint}", param=where + name, code="unknown_parameter")
    return {name: fields[name](where + name, value) for name, value in content.items() if value is not None}


def _required(found: Mapping[str, Any], name: str) -> Any:
    if name not in found:
        raise ApiError(f"The field {name!r} is missing", param=name, code="missing_required_parameter")
    return found[name]


def _wrong_type(name: str, expected: str, value: Any) -> ApiError:
    return ApiError(f"{name!r} must be {expected}, not {_kind(value)}", param=name, code="invalid_type")


def _kind(value: Any) -> str:
    names = {bool: "a boolean", int: "a whole number", float: "a number", str: "a string", list: "a list"}
    return "null" if value is None else names.get(type(value), "an object")


def _whole(low: int, high: int) -> Read:
    def read(name: str, value: Any) -> int:
        if type(value) is not int:
            raise _wrong_type(name, "a whole number", value)
        if not low <= value <= high:
            raise ApiError(f"{name!r} must lie between {low} and {high}, got {value}", param=name, code="invalid_value")
        return value

    return read


def _real(low: float, high: float) -> Read:
    def read(name: str, value: Any) -> float:
        if type(value) not in (int, float):
            raise _wrong_type(name, "a number", value)
        # NaN lies nowhere.
        if not low <= value <= high:
            raise ApiError(f"{name!r} must lie between {low} and {high}, got {value}", param=name, code="invalid_value")
        return float(value)

    return read


def _flag(name: str, value: Any) -> bool:
    if type(value) is not bool:
        raise _wrong_type(name, "a boolean", value)
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _wrong_type(name, "a string", value)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        message = f"{name!r} holds half a surrogate pair at character {error.start}, which is not Unicode text"
        raise ApiError(message, param=name, code="invalid_value") from error
    return value


def _only(*harmless: Any) -> Read:
    """A field that changes nothing at these values; at any other it would, and is not implemented."""

    def read(name: str, value: Any) -> Any:
        # False == 0 in Python, but a client that writes one for the other means something else.
        if not any(type(value) is type(same) and value == same for same in harmless):
            message = f"{name!r} = {json.dumps(value)} is not supported by this server; leave it out"
            raise ApiError(message, param=name, code="unsupported_parameter")
        return value

    return read


def _ignored(name: str, value: Any) -> Any:
    """A label for the provider's own books: it never changes an answer."""
    return value


def _stops(name: str, value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list):
        raise _wrong_type(name, "a string or a list of strings", value)
    if len(stops) > MAX_STOPS or "" in stops:
        raise ApiError(f"{name!r} takes up to {MAX_STOPS} strings, none of them empty", param=name)
    return tuple(_text(name, stop) for stop in stops)


def _stream_options(name: str, value: Any) -> bool:
    if not isinstance(value, dict):
        raise _wrong_type(name, "an object", value)
    fields = {"include_usage": _flag, "include_obfuscation": _only(False)}
    return _read(value, fields, f"{name}.").get("include_usage", False)


def _prompts(name: str, value: Any) -> tuple[Prompt, ...]:
    if isinstance(value, str) or (isinstance(value, list) and value and type(value[0]) is int):
        return (_prompt(name, value),)
    if not isinstance(value, list):
        raise _wrong_type(name, "a string, a list of strings, token ids, or a list of lists of token ids", value)
    if not value:
        raise ApiError(f"{name!r} is empty", param=name, code="invalid_value")
    if len({type(each) for each in value}) > 1:
        raise ApiError(f"{name!r} must hold strings or token ids, not both", param=name, code="invalid_type")
    return tuple(_prompt(f"{name}[{i}]", each) for i, each in enumerate(value))


def _prompt(name: str, value: Any) -> Prompt:
    if isinstance(value, str):
        return _text(name, value)
    if not isinstance(value, list):
        raise _wrong_type(name, "a string or a list of token ids", value)
    wrong = next((each for each in value if type(each) is not int), None)
    if wrong is not None:
        raise _wrong_type(name, "a list of token ids alone", wrong)
    return tuple(value)


def _messages(name: str, value: Any) -> tuple[dict[str, str], ...]:
    if not isinstance(value, list):
        raise _wrong_type(name, "a list of messages", value)
    if not value:
        raise ApiError(f"{name!r} is empty: give at least one message", param=name, code="invalid_value")
    return tuple(_message(f"{name}[{i}]", message) for i, message in enumerate(value))


def _message(name: str, value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise _wrong_type(name, "an object with 'role' and 'content'", value)
    found = _read(value, _MESSAGE, f"{name}.")
    for field in ("role", "content"):
        if field not in found:
            raise ApiError(f"{name}.{field} is missing", param=f"{name}.{field}", code="missing_required_parameter")
    return {"role": found["role"], "content": found["content"]}


def _role(name: str, value: Any) -> str:
    if value not in ROLES:
        raise ApiError(
            f"{name!r} must be one of {', '.join(ROLES)}, not {json.dumps(value)}", param=name, code="invalid_value"
        )
    return value


def _content(name: str, value: Any) -> str:
    """A message's text, whole or in parts; there are no other kinds of parts here."""
    if isinstance(value, str):
        return _text(name, value)
    if not isinstance(value, list):
        raise _wrong_type(name, "a string or a list of text parts", value)
    return "".join(_part(f"{name}[{i}]", part) for i, part in enumerate(value))


def _part(name: str, value: Any) -> str:
    if not isinstance(value, dict):
        raise _wrong_type(name, "an object with 'type' and 'text'", value)
    if value.get("type") != "text":
        message = f"{name}.type = {json.dumps(value.get('type'))} is not supported; this server reads text"
        raise ApiError(message, param=f"{name}.type", code="unsupported_parameter")
    found = _read(value, {"type": _text, "text": _text}, f"{name}.")
    return found.get("text", "")


_SHARED: dict[str, Read] = {
    "model": _text,
    "n": _whole(1, MAX_CHOICES),
    "max_tokens": _whole(1, 2**31 - 1),
    "temperature": _real(0, 2),
    "top_p": _real(0, 1),
    "top_k": _whole(0, 2**31 - 1),
    "seed": _whole(-(2**63), 2**63 - 1),
    "stop": _stops,
    "stream": _flag,
    "stream_options": _stream_options,
    "user": _ignored,
    "frequency_penalty": _only(0, 0.0),
    "presence_penalty": _only(0, 0.0),
    "logit_bias": _only({}),
}
_COMPLETION: dict[str, Read] = _SHARED | {
    "prompt": _prompts,
    # How many alternatives to list besides the sampled token: the sampler keeps none.
    "logprobs": _only(0),
    "echo": _only(False),
    "best_of": _only(1),
    "suffix": _only(""),
}
_CHAT: dict[str, Read] = _SHARED | {
    "messages": _messages,
    "max_completion_tokens": _whole(1, 2**31 - 1),
    # vLLM's.
    "add_generation_prompt": _flag,
    "continue_final_message": _flag,
    "logprobs": _flag,
    "top_logprobs": _only(0),
    **dict.fromkeys(("metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"), _ignored),
    "service_tier": _only("auto", "default"),
    "store": _only(False),
    "response_format": _only({"type": "text"}),
    "modalities": _only(["text"]),
    "tools": _only([]),
    "tool_choice": _only("none", "auto"),
    "parallel_tool_calls": _flag,
    "functions": _only([]),
    "function_call": _only("none", "auto"),
    **dict.fromkeys(("audio", "prediction", "reasoning_effort", "verbosity", "web_search_options"), _only()),
}
_MESSAGE: dict[str, Read] = {
    "role": _role,
    "content": _content,
    # What an answer of this API carries and clients send back with it, empty.
    "tool_calls": _only([]),
    "annotations": _only([]),
    **dict.fromkeys(("name", "refusal", "audio", "function_call", "tool_call_id"), _only()),
}
