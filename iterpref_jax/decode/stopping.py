"""Where a completion ends, and the text that may be shown of it."""

from __future__ import annotations

from collections.abc import Sequence

from iterpref_jax.decode.detokenize import TextStream, Vocabulary
from iterpref_jax.decode.request import FinishReason, Request


class StopStrings:
    """Finds the first stop string that a text completes, however the text is cut into parts."""

    def __init__(self, stops: Sequence[str]):
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Returns the text that no stop string can claim any more, and whether one was completed.

        The text ends in front of the stop string then. The first to be complete wins, the longest of those that end
        together: what reading one character at a time gives.
        """
        text = self._held + text
        ends = [(text.find(stop) + len(stop), -len(stop)) for stop in self._stops if stop in text]
        if ends:
            end, length = min(ends)
            self._held = ""
            return text[: end + length], True
        cut = len(text) - max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[cut:]
        return text[:cut], False

    def flush(self) -> str:
        """Returns the text that was held back: no more comes."""
        held, self._held = self._held, ""
        return held


class Transcript:
    """One completion as it grows: tokens in, final text out, until it ends."""

    def __init__(self, request: Request, vocabulary: Vocabulary, eos_ids: Sequence[int]):
        self.stop_token_ids = tuple(eos_ids if request.stop_token_ids is None else request.stop_token_ids)
        self._left = request.max_tokens
        self._stream = TextStream(vocabulary, request.prompt)
        self._stops = StopStrings(request.stop)

    def add(self, tokens: Sequence[int]) -> tuple[str, int, FinishReason | None]:
        """Returns the text that these tokens add, how many of them belong to the completion, and why it ended."""
        text = ""
        for number, token in enumerate(tokens, start=1):
            new, reason = self._add_one(token)
            text += new
            if reason:
                return text, number, reason
        return text, len(tokens), None

    def _add_one(self, token: int) -> tuple[str, FinishReason | None]:
        self._left -= 1
        stop_token = token in self.stop_token_ids
        text = "" if stop_token else self._stream.add(token)
        ends = stop_token or not self._left
        if ends:
            text += self._stream.finish()
        text, stop_string = self._stops.push(text)
        if stop_string:
            return text, "stop"
        if ends:
            return text + self._stops.flush(), "stop" if stop_token else "length"
        return text, None


def _overlap(text: str, stop: str) -> int:
    """Returns the length of the longest end of `text` that a stop string begins with."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)
