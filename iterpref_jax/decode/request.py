"""What is asked of the sampler and what it gives back."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import numbers
from collections.abc import Iterable, Sequence
from typing import Literal

from iterpref_jax.errors import UserError

FinishReason = Literal["stop", "length"]

# Every slot compares its token with a list of this length in the compiled loop.
MAX_STOP_TOKENS = 8
MAX_SEED = 2**32 - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplerSettings:
    """The shapes that are compiled.

    Attributes:
        slots: completions that run together; on a mesh a multiple of the parts that rows are split into.
        context: the most tokens of a prompt and its completion.
        chunk: decoding steps between two looks at the results; more is faster, fewer answers sooner.
        prefill_tokens: prompts are computed together up to so many tokens (a longer one alone). Up to a few hundred
            cost an accelerator what one costs, reading the weights; beyond, padding is wasted work.
    """

    slots: int
    context: int
    chunk: int
    prefill_tokens: int

    def __post_init__(self):
        for name, least in {"slots": 1, "context": 2, "chunk": 1, "prefill_tokens": 1}.items():
            if getattr(self, name) < least:
                raise UserError(f"decode.{name} must be at least {least}, got {getattr(self, name)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """One completion of one prompt.

    Equal requests give equal completions whatever else is sampled beside them; n samples of a prompt are n requests
    with n seeds (the prompt is computed once).

    Attributes:
        prompt: token ids.
        max_tokens: the completion ends after so many tokens at the latest.
        temperature: 0 takes the most probable token.
        top_p: keeps the most probable tokens that together have this probability; 1 keeps all.
        top_k: keeps this many of the most probable tokens; 0 keeps all.
        stop: strings that end the text; the text ends in front of them.
        seed: 0 to 2**32 - 1.
        stop_token_ids: tokens that end the completion; they show no text. None takes the sampler's end-of-sequence
            tokens; an empty tuple ignores those, so that the completion has exactly `max_tokens` tokens.
    """

    prompt: Sequence[int]
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: Sequence[str] = ()
    seed: int = 0
    stop_token_ids: Sequence[int] | None = None

    def __post_init__(self):
        self._freeze("prompt", numbers.Integral, "token ids")
        self._freeze("stop", str, "strings")
        if self.stop_token_ids is not None:
            self._freeze("stop_token_ids", numbers.Integral, "token ids")
        self._check_numbers()
        if not self.prompt:
            raise UserError("prompt is empty: a completion needs at least one token to continue; begin with the BOS")
        if "" in self.stop:
            raise UserError(f"stop holds an empty string, which would end every text: {list(self.stop)!r}")
        if len(self.stop_token_ids or ()) > MAX_STOP_TOKENS:
            raise UserError(
                f"stop_token_ids holds {len(self.stop_token_ids or ())} tokens, of which {MAX_STOP_TOKENS} are the most"
            )

    def check_fits(self, context: int) -> None:
        """Raises UserError if prompt and completion together are longer than the context."""
        if len(self.prompt) + self.max_tokens > context:
            raise UserError(
                f"prompt has {len(self.prompt)} tokens and max_tokens is {self.max_tokens}: together more than the "
                f"context of {context}; shorten one of them, or raise decode.context"
            )

    def _freeze(self, name: str, kind: type, wanted: str) -> None:
        value = getattr(self, name)
        if isinstance(value, str) or not all(isinstance(each, kind) for each in value):
            raise UserError(f"{name} must be a list of {wanted}, got {value!r}")
        object.__setattr__(self, name, tuple(value))

    def _check_numbers(self) -> None:
        ranges = {
            "max_tokens": (1, math.inf),
            "temperature": (0.0, 1000.0),
            "top_p": (0.0, 1.0),
            "top_k": (0, 2**31 - 1),
            "seed": (0, MAX_SEED),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            whole = name not in ("temperature", "top_p")
            if not _is_number(value, whole) or not low <= value <= high:
                kind = "a whole number" if whole else "a number"
                limit = f"at least {low}" if high == math.inf else f"between {low} and {high}"
                raise UserError(f"{name} must be {kind}, {limit}; got {value!r}")


def _is_number(value: object, whole: bool) -> bool:
    kind = numbers.Integral if whole else numbers.Real
    return isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Piece:
    """What one request gained in one round.

    Attributes:
        text: final text; it may lag behind the tokens (an unfinished character, the beginning of a stop string).
        tokens: ids, with the one that ended the completion.
        logprobs: the model's own log-prob of each token (temperature 1, unfiltered).
        finish_reason: "stop" after a stop token or stop string, "length" after `max_tokens`; None: there is more.
    """

    request_id: int
    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Completion:
    """A finished request; the fields are those of `Piece`."""

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason


def join(pieces: Iterable[Piece]) -> Completion:
    """Returns the completion that the pieces of one request, first to last, make up."""
    pieces = list(pieces)
    reason = pieces[-1].finish_reason
    assert reason is not None, "the last piece of a completion says why it ended"
    return Completion(
        text="".join(piece.text for piece in pieces),
        tokens=tuple(token for piece in pieces for token in piece.tokens),
        logprobs=tuple(logprob for piece in pieces for logprob in piece.logprobs),
        finish_reason=reason,
    )


def derived_seed(seed: int, index: int) -> int:
    """Returns the seed (32 bits) of completion number `index` of a request or file with `seed`."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {index}".encode(), digest_size=4).digest(), "big")
