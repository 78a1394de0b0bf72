"""Asks and settings of the tests, and a client of a loopback server for the length of one coroutine."""

import asyncio
import dataclasses

from iterpref_jax.codeflow.endpoint import Ask, EndpointSettings, Sampling, open_client, open_journal

SAMPLING = Sampling(temperature=0.8, top_p=0.9, max_tokens=32)
# Small times: what waits in a test waits milliseconds. No proxy, no price, no limit.
SETTINGS = EndpointSettings(
    base_urls=(),
    model="tiny",
    api_key_env="ITERPREF_TEST_KEY",
    extra={},
    concurrency=16,
    requests_per_minute=0,
    tokens_per_minute=0,
    request_s=5.0,
    stall_s=2.0,
    tries=4,
    backoff_s=0.01,
    backoff_max_s=0.05,
    break_after=5,
    give_up_s=2.0,
    reasks=1,
    usd_per_million_prompt=0.0,
    usd_per_million_completion=0.0,
    budget_usd=0.0,
    max_calls=0,
    max_total_tokens=0,
)


def ask_of(text="hello", **fields):
    subject = {} if "prompt" in fields else {"messages": ({"role": "user", "content": text},)}
    return Ask(**{"sampling": SAMPLING, "purpose": "tests", "prompt_version": "1"} | subject | fields)


def with_client(path, urls, use, **changes):
    """Runs `await use(client)` with a journal at `path` and returns its value; jitter is 0.5."""
    urls = (urls,) if isinstance(urls, str) else tuple(urls)
    settings = dataclasses.replace(SETTINGS, base_urls=urls, **changes)

    async def main():
        with open_journal(path) as journal:
            async with open_client(settings, journal, jitter=lambda: 0.5) as client:
                return await use(client)

    return asyncio.run(main())


def answers_of(path, urls, *asks, **changes):
    """Asks all at once; returns the answers (or what was raised) in order, and the client's counts."""

    async def use(client):
        found = await asyncio.gather(*map(client.ask, asks), return_exceptions=True)
        return found, client.accounts.as_json()

    return with_client(path, urls, use, **changes)
