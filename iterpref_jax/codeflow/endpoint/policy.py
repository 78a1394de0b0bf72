"""What a failure means: ask again, give up this ask, or stop because asking again would not help."""

from __future__ import annotations

import dataclasses
import datetime
import email.utils
import json
import math
from typing import Any, Literal

# Reasons of the server's state: they do not count against an ask's tries.
_STATE = {429: "rate_limit", 502: "bad_gateway", 503: "unavailable", 529: "overloaded"}
_ASK = {408: "timeout", 409: "conflict", 425: "too_early", 504: "timeout"}
_OVERLOAD = (408, 429, 503, 504, 529)
# A 429 that no waiting mends; a 400 that is about one ask alone.
_SPENT = ("insufficient_quota", "billing_hard_limit_reached")
_OF_ONE_ASK = {"context_length_exceeded": "context_length", "content_filter": "content_filter"}
_NOT_UNICODE = "not_unicode"
_TOO_LONG = ("maximum context length", "context length", "max_model_len")
MAX_MESSAGE = 500


class Broken(Exception):
    """An answer that came in no usable form; `reason` is a word for the books."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


class AskFailed(Exception):
    """One ask cannot be answered (`reason`: context_length, timeout, ...) while the endpoint as a whole works."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason

    @property
    def lasts(self) -> bool:
        """Whether the same ask would fail again, however well the endpoint is."""
        return self.reason in (*_OF_ONE_ASK.values(), _NOT_UNICODE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failure:
    """One request that failed.

    `then`: "again", "drop" this ask, or "stop" everything. `of_ask`: it counts against the ask's tries. `overload`: the
    server is asked less. `retry_after`: seconds that the server wants to be left alone. `status`: HTTP, 0 without one.
    """

    reason: str
    message: str
    then: Literal["again", "drop", "stop"] = "again"
    of_ask: bool = True
    overload: bool = False
    retry_after: float | None = None
    status: int = 0


def failure_of(error: Exception, *, begun: bool, now: datetime.datetime) -> Failure | None:
    """Returns what `error` of one request means, None if it is none of the endpoint's (a defect of ours).

    `begun`: the response's headers had come. `now`, with a time zone, is what a Retry-After date is counted from.
    """
    import aiohttp
    import openai

    if isinstance(error, Broken):
        # A page of another kind is no answer to any ask.
        return Failure(reason=error.reason, message=str(error), of_ask=error.reason != "content_type")
    if isinstance(error, openai.APIStatusError):
        return _of_status(error, now)
    if isinstance(error, TimeoutError) or (isinstance(error, openai.APIConnectionError) and _timed_out(error)):
        return Failure(reason="timeout", message=f"no answer in time ({type(error).__name__})", overload=True)
    if isinstance(error, (openai.APIConnectionError, aiohttp.ClientError, OSError)):
        return Failure(reason="dropped" if begun else "connection", message=_root(error), of_ask=begun)
    if isinstance(error, openai.APIError):
        return Failure(reason="stream_error", message=said(error))
    if isinstance(error, (json.JSONDecodeError, UnicodeDecodeError)):
        return Failure(reason="truncated", message=f"the answer is no JSON: {error}"[:MAX_MESSAGE])
    if isinstance(error, UnicodeEncodeError):
        return Failure(reason=_NOT_UNICODE, message=f"the prompt is no Unicode text: {error.reason}", then="drop")
    return None


def retry_after(value: str | None, now: datetime.datetime) -> float | None:
    """Returns the seconds of a Retry-After header (a number or an HTTP date); None without a usable one.

    >>> retry_after("2.5", datetime.datetime.now(datetime.timezone.utc))
    2.5
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = email.utils.parsedate_to_datetime(value)
        except ValueError:
            return None
        # "-0000" gives a date without a zone; HTTP dates are UTC.
        date = date if date.tzinfo else date.replace(tzinfo=datetime.UTC)
        seconds = (date - now).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None


def backoff(number: int, first_s: float, most_s: float, jitter: float) -> float:
    """Returns the seconds before retry `number` (from 0), full jitter: `jitter` in [0, 1) of the exponential bound."""
    return jitter * min(most_s, first_s * 2.0 ** min(number, 60))


def said(error: Any) -> str:
    """Returns what the server said, cut to `MAX_MESSAGE` characters."""
    message = error.body.get("message") if isinstance(error.body, dict) else None
    return str(message or error.message)[:MAX_MESSAGE]


def _of_status(error: Any, now: datetime.datetime) -> Failure:
    status, message, code = error.status_code, said(error), str(error.code)
    if code in _OF_ONE_ASK or (status == 400 and any(words in message for words in _TOO_LONG)):
        return Failure(reason=_OF_ONE_ASK.get(code, "context_length"), message=message, then="drop", status=status)
    if (status < 500 and status not in _ASK and status not in _STATE) or code in _SPENT:
        return Failure(reason="refused", message=message, then="stop", status=status)
    return Failure(
        reason=_STATE.get(status) or _ASK.get(status) or "server_error",
        message=f"{status}: {message}",
        of_ask=status not in _STATE,
        overload=status in _OVERLOAD,
        retry_after=retry_after(error.response.headers.get("retry-after"), now),
        status=status,
    )


def _timed_out(error: BaseException | None) -> bool:
    # aiohttp's transport reports a lost connection as a timeout too; the first cause tells them apart.
    while error is not None:
        if isinstance(error, TimeoutError):
            return True
        error = error.__cause__
    return False


def _root(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error) or type(error).__name__)[:MAX_MESSAGE]
