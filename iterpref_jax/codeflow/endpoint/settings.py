"""The settings of the endpoint; `configs/base.py` says what each is for."""

from __future__ import annotations

import dataclasses
import math
from typing import Any
from urllib.parse import urlsplit

from iterpref_jax.errors import UserError

# What every request carries already; the rest of a server's fields may stand in `extra`.
SENT = (
    *("model", "messages", "prompt", "temperature", "top_p", "max_tokens", "stop", "seed", "n", "presence_penalty"),
    *("frequency_penalty", "stream", "stream_options", "response_format", "add_generation_prompt"),
    "continue_final_message",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EndpointSettings:
    """Where a model is, how fast it may be asked, how long failures last, and what all answers may take together."""

    base_urls: tuple[str, ...]
    model: str
    api_key_env: str
    extra: dict[str, Any]
    concurrency: int
    requests_per_minute: int
    tokens_per_minute: int
    request_s: float
    stall_s: float
    tries: int
    backoff_s: float
    backoff_max_s: float
    break_after: int
    give_up_s: float
    reasks: int
    usd_per_million_prompt: float
    usd_per_million_completion: float
    budget_usd: float
    max_calls: int
    max_total_tokens: int


_POSITIVE = ("request_s", "stall_s", "backoff_s", "backoff_max_s", "give_up_s", "concurrency", "tries", "break_after")
_NOT_NEGATIVE = (
    *("requests_per_minute", "tokens_per_minute", "reasks", "usd_per_million_prompt", "usd_per_million_completion"),
    *("budget_usd", "max_calls", "max_total_tokens"),
)


def check_settings(settings: EndpointSettings) -> None:
    """Raises UserError for the first setting that cannot work or would have no effect."""
    if not settings.model:
        raise UserError("endpoint.model is empty: name the model as the server does (GET /v1/models lists them)")
    _check_urls(settings.base_urls)
    for name in (*_POSITIVE, *_NOT_NEGATIVE):
        value = getattr(settings, name)
        if not math.isfinite(value) or value < 0 or (name in _POSITIVE and value == 0):
            wanted = "above 0" if name in _POSITIVE else "of at least 0 (0 = none)"
            raise UserError(f"endpoint.{name}: wanted a finite number {wanted}, got {value!r}")
    for name in settings.extra:
        if name in SENT:
            raise UserError(f"endpoint.extra.{name}: every request has this field already; it would be sent twice")
    if settings.budget_usd and not (settings.usd_per_million_prompt or settings.usd_per_million_completion):
        raise UserError(
            f"endpoint.budget_usd = {settings.budget_usd} has no effect without prices: set "
            "endpoint.usd_per_million_prompt and endpoint.usd_per_million_completion"
        )


def _check_urls(urls: tuple[str, ...]) -> None:
    if not urls:
        raise UserError("endpoint.base_urls is empty: name at least one server, such as http://127.0.0.1:8000/v1")
    for url in urls:
        parts = urlsplit(url)
        if "@" in parts.netloc:
            raise UserError(
                "endpoint.base_urls: an address holds a user or a password; put the key into the environment variable "
                "that endpoint.api_key_env names"
            )
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise UserError(f"endpoint.base_urls: {url!r} is no address; wanted one such as http://127.0.0.1:8000/v1")
    repeated = next((url for url in urls if urls.count(url) > 1), None)
    if repeated:
        raise UserError(f"endpoint.base_urls: {repeated!r} stands there twice")
