"""What is asked of a model, what it answers, and the key under which the journal keeps both together."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from iterpref_jax.codeflow import draws
from iterpref_jax.codeflow.preferences import Message


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How an answer is drawn; every field is sent, because servers have defaults of their own."""

    temperature: float
    top_p: float
    max_tokens: int
    stop: tuple[str, ...] = ()
    seed: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ask:
    """One question: exactly one of `messages` (chat) and `prompt` (a base model's completion).

    `sample` numbers several answers to one question, `attempt` the re-asks after malformed answers. `purpose` is for
    the books alone: it changes neither the answer nor the key. `schema` is a JSON schema that the server is asked to
    follow; with `continue_final` the answer goes on with the last message, an assistant's (vLLM). Raises ValueError.
    """

    sampling: Sampling
    purpose: str
    prompt_version: str
    messages: tuple[Message, ...] = ()
    prompt: str | None = None
    sample: int = 0
    attempt: int = 0
    schema: dict[str, Any] | None = None
    continue_final: bool = False

    def __post_init__(self):
        if bool(self.messages) == (self.prompt is not None):
            raise ValueError("an Ask has either messages or a prompt")
        if self.schema is not None and self.prompt is not None:
            raise ValueError("a schema needs messages: the completions endpoint takes none")
        if self.continue_final and (not self.messages or self.messages[-1]["role"] != "assistant"):
            raise ValueError("continue_final needs an assistant's message at the end")

    @property
    def seed(self) -> int | None:
        """The seed that is sent, in [0, 2**31): samples and attempts of one question have different ones."""
        if self.sampling.seed is None:
            return None
        return draws.draw(self.sampling.seed, "sample", str(self.sample), str(self.attempt)) % 2**31

    def key(self, model: str, extra: Mapping[str, Any] | None = None) -> str:
        """Returns SHA-256, in hex, over all that changes the answer; `extra` are fields that every request carries."""
        fields = dataclasses.asdict(self)
        del fields["purpose"]
        return hashlib.sha256(canonical({"model": model, "extra": dict(extra or {}), **fields}).encode()).hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """What came back. `cost` is in USD by the configured prices; `estimated`: the server did not count the tokens."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    model: str
    cost: float
    estimated: bool


def canonical(value: Any) -> str:
    """Returns compact JSON with sorted keys: one text for equal values. Raises ValueError for NaN and infinities."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
