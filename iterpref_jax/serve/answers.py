"""Writes answers as OpenAI's API does: whole ones, and the chunks of a stream."""

from __future__ import annotations

import codecs
import secrets
import time
from collections.abc import Iterable, Sequence
from typing import Any

from iterpref_jax.decode.request import Piece


class Choice:
    """One completion as far as it has come; `table` holds the bytes of every token, or None without log-probs."""

    def __init__(self, index: int, table: Sequence[bytes] | None):
        self.index, self.text, self.tokens, self.finish_reason = index, "", 0, None
        self.spelled: list[dict[str, Any]] = []
        self._table = table
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._characters = 0

    def add(self, piece: Piece) -> list[dict[str, Any]]:
        """Takes over a piece; returns its tokens, spelled out with their log-probs, if they were asked for."""
        self.text += piece.text
        self.tokens += len(piece.tokens)
        self.finish_reason = piece.finish_reason
        if self._table is None:
            return []
        spelled = [self._spell(*token) for token in zip(piece.tokens, piece.logprobs, strict=True)]
        self.spelled += spelled
        return spelled

    def _spell(self, token: int, logprob: float) -> dict[str, Any]:
        assert self._table is not None
        # A model's vocabulary may be padded beyond its tokenizer's.
        spelled = self._table[token] if token < len(self._table) else b""
        # Where the token starts in the text; one that goes on with a character begins where that character does.
        offset = self._characters
        self._characters += len(self._decoder.decode(spelled))
        text = spelled.decode(errors="replace")
        return {"token": text, "bytes": list(spelled), "logprob": float(logprob), "offset": offset}


def usage(prompt_tokens: int, choices: Iterable[Choice]) -> dict[str, int]:
    """Returns the token counts of an answer; a prompt counts once, however many completions it gets."""
    completion_tokens = sum(choice.tokens for choice in choices)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


class CompletionForm:
    """How /v1/completions answers one request."""

    prefix, whole_object, chunk_object = "cmpl", "text_completion", "text_completion"

    def __init__(self, model: str, *, logprobs: bool, include_usage: bool):
        self._head = {"id": f"{self.prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}
        self._logprobs, self._include_usage = logprobs, include_usage

    def whole(self, choices: Iterable[Choice], counts: dict[str, int]) -> dict[str, Any]:
        """Returns the answer of a request that is not streamed."""
        written = [self.choice(choice) for choice in choices]
        return {**self._head, "object": self.whole_object, "choices": written, "usage": counts}

    def opening(self, index: int) -> list[dict[str, Any]]:
        """Returns the chunks that come before the first text of a completion."""
        return []

    def chunks(self, index: int, piece: Piece, spelled: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Returns the chunks of one piece: none if it says nothing that was asked for."""
        if not (piece.text or spelled or piece.finish_reason):
            return []
        return [self._chunk(self._choice(index, piece.text, spelled, piece.finish_reason))]

    def usage_chunk(self, counts: dict[str, int]) -> dict[str, Any]:
        """Returns the chunk that ends a stream with `include_usage`."""
        return {**self._head, "object": self.chunk_object, "choices": [], "usage": counts}

    def choice(self, choice: Choice) -> dict[str, Any]:
        return self._choice(choice.index, choice.text, choice.spelled, choice.finish_reason)

    def spelled(self, tokens: list[dict[str, Any]]) -> dict[str, Any]:
        """Returns the log-probs of some tokens; `top_logprobs` would list alternatives, and the sampler keeps none."""
        names = {"tokens": "token", "token_logprobs": "logprob", "text_offset": "offset"}
        return {name: [token[key] for token in tokens] for name, key in names.items()} | {"top_logprobs": None}

    def _choice(self, index: int, text: str, spelled: list[dict[str, Any]], reason: str | None) -> dict[str, Any]:
        logprobs = self.spelled(spelled) if self._logprobs else None
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        chunk = {**self._head, "object": self.chunk_object, "choices": [choice]}
        return chunk | {"usage": None} if self._include_usage else chunk


class ChatForm(CompletionForm):
    """How /v1/chat/completions answers: messages, and deltas that begin with the role."""

    prefix, whole_object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def opening(self, index: int) -> list[dict[str, Any]]:
        return [self._delta(index, {"role": "assistant", "content": ""}, [], None)]

    def chunks(self, index: int, piece: Piece, spelled: list[dict[str, Any]]) -> list[dict[str, Any]]:
        found = [self._delta(index, {"content": piece.text}, spelled, None)] if piece.text or spelled else []
        if piece.finish_reason:
            found.append(self._delta(index, {}, [], piece.finish_reason))
        return found

    def choice(self, choice: Choice) -> dict[str, Any]:
        message = {"role": "assistant", "content": choice.text, "refusal": None}
        logprobs = self.spelled(choice.spelled) if self._logprobs else None
        return {
            "index": choice.index,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": choice.finish_reason,
        }

    def spelled(self, tokens: list[dict[str, Any]]) -> dict[str, Any]:
        keys = ("token", "logprob", "bytes")
        content = [{key: token[key] for key in keys} | {"top_logprobs": []} for token in tokens]
        return {"content": content, "refusal": None}

    def _delta(
        self, index: int, delta: dict[str, Any], spelled: list[dict[str, Any]], reason: str | None
    ) -> dict[str, Any]:
        logprobs = self.spelled(spelled) if self._logprobs and spelled else None
        return self._chunk({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason})
