"""The text of tokens as they come, in time linear in their number.

Decoding a token alone gives other text than decoding it behind its predecessors: characters are split over byte
tokens, and SentencePiece-like tokenizers drop the space in front of the first word. So the last few tokens are decoded
with and without the new one, and the difference is shown.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence

REPLACEMENT = "\ufffd"

# Tokens that are decoded again. 4 bytes on, a UTF-8 decoder that started anywhere agrees with one that has read all.
KEPT = 8


class Vocabulary:
    """What decoding needs to know of a fast `transformers` tokenizer; made once, shared by all streams."""

    def __init__(self, tokenizer):
        self._backend = tokenizer.backend_tokenizer
        added = self._backend.get_added_tokens_decoder()
        self._special = frozenset(token_id for token_id, token in added.items() if token.special)
        self._bytes = frozenset(self._byte_tokens())

    def decode(self, tokens: Sequence[int]) -> str:
        """Returns the text of all tokens at once, special ones left out."""
        return self._backend.decode(tokens, skip_special_tokens=True)

    def has_text(self, token: int) -> bool:
        """False for special tokens, and for ids beyond the tokenizer's (models pad their vocabulary)."""
        return token not in self._special and self._backend.id_to_token(token) is not None

    def may_change(self, token: int) -> bool:
        """True for a SentencePiece byte: the bytes of a row are text together or not at all."""
        return token in self._bytes

    def tail(self, tokens: Sequence[int]) -> list[int]:
        """Returns the last tokens with text: enough of them to decode what comes next."""
        found: list[int] = []
        for token in reversed(tokens):
            if self.has_text(token):
                found.append(token)
                if len(found) >= KEPT and not self.may_change(token):
                    break
        return found[::-1]

    def _byte_tokens(self) -> Iterable[int]:
        decoder = self._backend.decoder
        if decoder is not None and '"ByteFallback"' in json.dumps(json.loads(decoder.__getstate__())):
            for byte in range(256):
                token = self._backend.token_to_id(f"<0x{byte:02X}>")
                if token is not None:
                    yield token


class TextStream:
    """The text of a completion: what `decode(prompt + completion)` has behind `decode(prompt)`."""

    def __init__(self, vocabulary: Vocabulary, prompt: Sequence[int]):
        self._vocabulary = vocabulary
        self._window = vocabulary.tail(prompt)
        # The part of the window's text that needs no showing.
        self._shown = vocabulary.decode(self._window)

    def add(self, token: int) -> str:
        """Returns the text that is final now and was not before."""
        if not self._vocabulary.has_text(token):
            return ""
        self._window.append(token)
        return "" if self._vocabulary.may_change(token) else self._new_text(unfinished=1)

    def finish(self) -> str:
        """Returns the rest, after the last token."""
        return self._new_text(unfinished=0)

    def _new_text(self, unfinished: int) -> str:
        text = self._vocabulary.decode(self._window)
        # Bytes that may still become a character are decoded to one replacement character at the end.
        end = len(text) - unfinished * text.endswith(REPLACEMENT)
        start = _common_length(self._shown, text)
        if start < end:
            self._shown = text[:end]
        self._shorten(len(text) - len(self._shown))
        return text[start:end]

    def _shorten(self, waiting: int) -> None:
        if len(self._window) >= 2 * KEPT:
            del self._window[:-KEPT]
            text = self._vocabulary.decode(self._window)
            self._shown = text[: len(text) - waiting]


def _common_length(left: str, right: str) -> int:
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False)))
