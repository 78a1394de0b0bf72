"""Text to token ids and focus: templates, fences, end of sequence, and which tokens the focus spans weight.

The prompt is encoded as at inference; the completion starts at a token boundary and is encoded by itself, so ids and
focus come from one encoding. Every completion's tokens are joined and compared with its text, byte for byte.
"""

from __future__ import annotations

import bisect
import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tokenizers

from iterpref_jax.codeflow import focus as focus_lib
from iterpref_jax.codeflow import records
from iterpref_jax.data import pieces, schema, text_rules, token_bytes
from iterpref_jax.errors import UserError

Prompt = str | tuple[records.Message, ...]


class _Side(NamedTuple):
    """One completion on its way to tokens; `shift` characters of the fence stand in front of the spans' text.

    `other` holds the ids of the chosen side: no anchor of the rejected one stands inside their common prefix.
    """

    where: str
    text: str
    shift: int
    spans: tuple[focus_lib.Span, ...]
    other: np.ndarray | None


class _Encoded(NamedTuple):
    """The ids of one completion (int32) and the 0/1 focus of each (uint8)."""

    ids: np.ndarray
    focus: np.ndarray


class Garbled(NamedTuple):
    """A pair of which the tokenizer does not give a side back byte for byte, and where it does not."""

    where: str


class Encoder:
    """Pairs to examples by `rules`; takes over `tokenizer` (a fast transformers one); picklable."""

    def __init__(self, tokenizer, rules: text_rules.TextRules):
        self.tokenizer, self.rules = tokenizer, rules
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        spec = json.loads(self._backend.to_str())
        self._bytes = token_bytes.token_bytes(self._backend, spec)
        self._lengths = np.array([len(token) for token in self._bytes], np.int64)
        self._longest = int(self._lengths.max())
        plain = token_bytes.plain_backend(spec, self._bytes)
        self._completions = pieces.BatchEncoder(plain, token_bytes.plain_spec(spec, self._bytes))
        self._prompts = pieces.BatchEncoder(self._backend, spec)
        self._normalizer = getattr(tokenizers.normalizers, rules.unicode_form)() if rules.unicode_form else None

    def __reduce__(self):
        return Encoder, (self.tokenizer, self.rules)

    def is_surely_longer(self, text: str, tokens: int) -> bool:
        """Whether `text` cannot fit so many tokens, however long each is; False says nothing."""
        return len(text) > tokens * self._longest

    def normalize(self, text: str) -> str:
        """Returns `text` in the tokenizer's Unicode form; spans must be found in this text."""
        if self._normalizer is None or text.isascii():
            return text
        return self._normalizer.normalize_str(text)

    def prompt_text(self, prompt: Prompt, form: records.Form) -> str:
        """Returns the text of one prompt, up to where a completion of that form starts.

        Raises UserError if it has none.
        """
        rules = self.rules
        if rules.template == "chat":
            messages = ({"role": "user", "content": prompt},) if isinstance(prompt, str) else prompt
            if rules.system and messages[0]["role"] != "system":
                messages = ({"role": "system", "content": rules.system}, *messages)
            return text_rules.render(self.tokenizer, messages, rules.template_kwargs, add_generation_prompt=True)
        if not isinstance(prompt, str):
            raise UserError('a prompt of messages needs text.template = "chat", it is "raw"')
        # Texts are joined as they stand, as TRL does: an implicit prompt ends in the middle of a line.
        return prompt + (rules.raw_separator if form == "code" else "")

    def completion_text(self, text: str, form: records.Form) -> str:
        """Returns what the model writes for a program (form "code") or an answer ("text")."""
        if form != "code" or not self.rules.fence_open:
            return text
        newline = "" if text.endswith("\n") else "\n"
        return f"{self.rules.fence_open}{text}{newline}{self.rules.fence_close}"

    def encode_pairs(self, pairs: Sequence[records.Pair], focuses: Sequence[focus_lib.Focus]) -> list[schema.Example]:
        """Returns the examples of normalised pairs and their focus, in order.

        Raises UserError that names the pair if its tokens do not give its text back.
        """
        examples = []
        for found in self.try_pairs(pairs, focuses):
            if isinstance(found, Garbled):
                raise UserError(f"{found.where}; leave this pair out, or use a tokenizer that keeps every byte")
            examples.append(found)
        return examples

    def try_pairs(
        self, pairs: Sequence[records.Pair], focuses: Sequence[focus_lib.Focus]
    ) -> list[schema.Example | Garbled]:
        """Returns the examples of normalised pairs and their focus, in order, or why a pair can be none."""
        both = list(zip(pairs, focuses, strict=True))
        chosen = self._encode_sides([self._side("chosen", pair, pair.chosen, focus.chosen) for pair, focus in both])
        rejected = self._encode_sides(
            [
                self._side("rejected", pair, pair.rejected, focus.rejected, None if isinstance(c, Garbled) else c.ids)
                for (pair, focus), c in zip(both, chosen, strict=True)
            ]
        )
        prompts = self._prompts_of(pairs)
        for pair, prompt in zip(pairs, prompts, strict=True):
            if not len(prompt):
                raise UserError(
                    f"pair {pair.pair_id!r}: the prompt has no token, so nothing predicts the completion's first one; "
                    "give it a prompt, or set build.text.raw_separator for programs"
                )
        return [_joined(*parts) for parts in zip(pairs, prompts, chosen, rejected, strict=True)]

    def _side(
        self,
        name: str,
        pair: records.Pair,
        text: str,
        spans: tuple[focus_lib.Span, ...],
        other: np.ndarray | None = None,
    ) -> _Side:
        whole = self.completion_text(text, pair.form)
        shift = len(self.rules.fence_open) if pair.form == "code" else 0
        return _Side(f"pair {pair.pair_id!r}, {name}", _checked_unicode(whole, pair.pair_id), shift, spans, other)

    def _prompts_of(self, pairs: Sequence[records.Pair]) -> list[np.ndarray]:
        # One task gives many pairs: its prompt is rendered and encoded once.
        keys = [(pair.form, pair.prompt if isinstance(pair.prompt, str) else json.dumps(pair.prompt)) for pair in pairs]
        distinct = dict(zip(keys, pairs, strict=True))
        ids = self._encode_prompts([self._prompt_text_of(pair) for pair in distinct.values()])
        found = dict(zip(distinct, ids, strict=True))
        return [found[key] for key in keys]

    def _prompt_text_of(self, pair: records.Pair) -> str:
        try:
            return _checked_unicode(self.prompt_text(pair.prompt, pair.form), pair.pair_id)
        except UserError as error:
            raise UserError(f"pair {pair.pair_id!r}, prompt: {error}") from error

    def _encode_prompts(self, texts: list[str]) -> list[np.ndarray]:
        # A chat template writes the special tokens itself; a raw prompt gets those that the tokenizer puts in front.
        if self.rules.template == "raw" and self._backend.num_special_tokens_to_add(False):
            found = [encoding.ids for encoding in self._backend.encode_batch_fast(texts)]
        else:
            found = self._prompts.encode(texts)
        return [np.array(ids, np.int32) for ids in found]

    def _encode_sides(self, sides: list[_Side]) -> list[_Encoded | Garbled]:
        # Pairs of one task share their chosen program.
        distinct = list(dict.fromkeys(side.text for side in sides))
        found = self._completions.encode([self.rules.guard + text for text in distinct])
        ids = dict(zip(distinct, found, strict=True))
        return [self._with_focus(side, ids[side.text]) for side in sides]

    def _with_focus(self, side: _Side, ids: list[int]) -> _Encoded | Garbled:
        """Returns the ids with the end of sequence, and the focus of each."""
        rules, guard = self.rules, len(self.rules.guard_ids)
        got = b"".join([self._bytes[i] for i in ids[guard:]])
        if got != side.text.encode() or tuple(ids[:guard]) != rules.guard_ids:
            return Garbled(f"{side.where}: {_difference(side.text, got)}")
        own = np.array([*ids[guard:], *rules.eos_ids], np.int32)
        focus = np.zeros(len(own), np.uint8)
        ends = np.cumsum(self._lengths[own[: len(ids) - guard]])
        for first, last, is_anchor in _token_ranges(ends, side):
            if is_anchor and side.other is not None:
                # An inserted line mostly begins as the line that it stands before (indentation): up to where the sides
                # part, both have the same tokens, and a weight there would cancel against the chosen side.
                first = max(first, schema.common_prefix(own, side.other))
                last = first + 1
            if last > len(own):
                raise UserError(
                    f"{side.where}: the focus is an anchor at the end of the text and no token follows it: set "
                    'text.eos = "append", or focus.empty to "drop" or "keep"'
                )
            focus[first:last] = 1
        return _Encoded(own, focus)


def _joined(
    pair: records.Pair, prompt: np.ndarray, chosen: _Encoded | Garbled, rejected: _Encoded | Garbled
) -> schema.Example | Garbled:
    if isinstance(chosen, Garbled):
        return chosen
    if isinstance(rejected, Garbled):
        return rejected
    ids, focus = (chosen.ids, rejected.ids), (chosen.focus, rejected.focus)
    return schema.Example(pair.pair_id, pair.task, prompt, *ids, *focus, _error_type(pair))


def _token_ranges(ends: np.ndarray, side: _Side) -> Iterator[tuple[int, int, bool]]:
    """Yields the tokens [first, last) of each span, and whether it is an anchor.

    `ends` are the tokens' last bytes in the text, plus 1.
    """
    if not side.spans:
        return
    places = np.array(side.spans, np.int64) + side.shift
    if places.min() < 0 or places.max() > len(side.text):
        raise ValueError(f"{side.where}: focus spans {side.spans} lie outside a text of {len(side.text)} characters")
    if not side.text.isascii():
        places = _byte_places(side.text)[places]
    for start, end in places.tolist():
        first = bisect.bisect_right(ends, start)
        if start == end:
            # An anchor marks the first token that ends after it; past the last one that is the end of sequence.
            yield first, first + 1, True
        else:
            # A token starts where the one before ends.
            yield first, bisect.bisect_left(ends, end) + 1, False


def _byte_places(text: str) -> np.ndarray:
    """Returns the UTF-8 byte at which each character of `text` starts, and the total; shape (len(text) + 1,)."""
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    sizes = 1 + (points > 0x7F) + (points > 0x7FF) + (points > 0xFFFF)
    return np.concatenate([[0], np.cumsum(sizes)])


def _error_type(pair: records.Pair) -> str:
    """How the rejected side failed, as far as the pair's source says it; files of others may hold anything there."""
    found = pair.meta.get("error_type")
    return _checked_unicode(found, pair.pair_id) if isinstance(found, str) else ""


def _checked_unicode(text: str, pair_id: str) -> str:
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = f"half a surrogate pair ({text[error.start]!r}) at character {error.start}"
        raise UserError(f"pair {pair_id!r}: {found} is not Unicode text; mend or leave out this pair") from error
    return text


def _difference(text: str, got: bytes) -> str:
    found = got.decode(errors="replace")
    pairs = zip(text, found, strict=False)
    place = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(text), len(found)))
    wanted, came = text[place : place + 20], found[place : place + 20]
    return f"the tokenizer does not give the text back: at character {place} wanted {wanted!r}, got {came!r}"
