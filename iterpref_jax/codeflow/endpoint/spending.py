"""What asking takes: tokens and money, counted by purpose, and limits that no call may pass."""

from __future__ import annotations

import asyncio
import dataclasses

from iterpref_jax.codeflow.endpoint.asks import Answer, Ask
from iterpref_jax.codeflow.endpoint.journal import ANSWER, WASTE, Journal
from iterpref_jax.codeflow.endpoint.settings import EndpointSettings
from iterpref_jax.errors import UserError

# What a chat template adds to each message and to the whole, in tokens, generously.
_TEMPLATE_TOKENS = 64
_MESSAGE_TOKENS = 16
_CHARACTERS_A_TOKEN = 3.5


class BudgetSpent(UserError):
    """The next call could pass a limit of `config.endpoint`; nothing of it was sent."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """Calls, tokens and USD."""

    calls: int = 0
    tokens: int = 0
    usd: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(calls=self.calls + other.calls, tokens=self.tokens + other.tokens, usd=self.usd + other.usd)

    def __neg__(self) -> Cost:
        return Cost(calls=-self.calls, tokens=-self.tokens, usd=-self.usd)


class Spending:
    """The limits over all runs with one journal: what it holds is spent, what runs is reserved at its most."""

    def __init__(self, settings: EndpointSettings, journal: Journal):
        self._settings = settings
        self.spent = Cost()
        for kind in (ANSWER, WASTE):
            for totals in journal.totals(kind).values():
                tokens = totals.prompt_tokens + totals.completion_tokens
                self.spent += Cost(calls=totals.calls, tokens=tokens, usd=totals.cost)
        self._reserved = Cost()
        self._waiting: list[asyncio.Future[None]] = []

    def usd(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Returns the price of one answer."""
        prices = self._settings
        millionths = prompt_tokens * prices.usd_per_million_prompt
        return (millionths + completion_tokens * prices.usd_per_million_completion) / 1e6

    async def reserve(self, ask: Ask) -> Cost:
        """Sets aside what the ask takes at most, waiting for running ones if it may fit when they have ended.

        Raises BudgetSpent if it does not fit beside what is spent.
        """
        prompt, completion = most_prompt_tokens(ask), ask.sampling.max_tokens
        most = Cost(calls=1, tokens=prompt + completion, usd=self.usd(prompt, completion))
        while (passed := self._passed(self.spent + self._reserved + most)) is not None:
            if self._passed(self.spent + most) is not None:
                raise BudgetSpent(self._message(passed))
            future = asyncio.get_running_loop().create_future()
            self._waiting.append(future)
            await future
        self._reserved += most
        return most

    def settle(self, reserved: Cost, spent: Cost) -> None:
        """Puts what was spent in the place of what was reserved."""
        self._reserved += -reserved
        self.spent += spent
        for future in self._waiting:
            if not future.done():
                future.set_result(None)
        self._waiting.clear()

    def _passed(self, total: Cost) -> str | None:
        limits = self._settings
        if limits.max_calls and total.calls > limits.max_calls:
            return "max_calls"
        if limits.max_total_tokens and total.tokens > limits.max_total_tokens:
            return "max_total_tokens"
        # Sums of prices such as 0.1 are not exact.
        return "budget_usd" if limits.budget_usd and total.usd > limits.budget_usd * (1 + 1e-9) else None

    def _message(self, name: str) -> str:
        spent = f"{self.spent.calls} calls, {self.spent.tokens} tokens, {self.spent.usd:.4f} USD"
        return (
            f"endpoint.{name} = {getattr(self._settings, name)} could be passed by the next call; spent so far: {spent}"
            "; raise the limit and start the same command again: all answers so far are in the journal"
        )


def most_prompt_tokens(ask: Ask) -> int:
    """Returns a number of tokens that the prompt does not pass: a token is at least one byte."""
    texts = _texts(ask)
    return sum(len(text.encode(errors="replace")) + _MESSAGE_TOKENS for text in texts) + _TEMPLATE_TOKENS


def estimated_tokens(*texts: str) -> int:
    """Returns about how many tokens texts are, for servers that do not say."""
    return round(sum(map(len, texts)) / _CHARACTERS_A_TOKEN)


def estimated_prompt_tokens(ask: Ask) -> int:
    """Returns about how many tokens the prompt has."""
    return estimated_tokens(*_texts(ask))


def _texts(ask: Ask) -> list[str]:
    return [ask.prompt] if ask.prompt is not None else [message["content"] for message in ask.messages]


class Accounts:
    """What happened in this process, by purpose and by reason; `as_json` is for reports."""

    def __init__(self):
        self.requests, self.from_journal, self.reasks, self.estimated = 0, 0, 0, 0
        self.retries: dict[str, int] = {}
        self.malformed: dict[str, int] = {}
        self.failed: dict[str, int] = {}
        self.purposes: dict[str, dict[str, float]] = {}

    def paid(self, purpose: str, answer: Answer) -> None:
        """Counts an answer that came over the network."""
        self.estimated += answer.estimated
        entry = self.purposes.setdefault(
            purpose, {"answers": 0, "prompt_tokens": 0, "completion_tokens": 0, "cost_usd": 0.0}
        )
        entry["answers"] += 1
        entry["prompt_tokens"] += answer.prompt_tokens
        entry["completion_tokens"] += answer.completion_tokens
        entry["cost_usd"] += answer.cost

    def as_json(self) -> dict[str, object]:
        """Returns all counts; `requests` were sent, `from_journal` were not, of `estimated` the tokens are a guess."""
        return {name: dict(value) if isinstance(value, dict) else value for name, value in vars(self).items()}


def count(table: dict[str, int], name: str) -> None:
    """Adds one to an entry of a table of counts."""
    table[name] = table.get(name, 0) + 1
