"""Focus: the character spans of y+ and y- in which the two differ (D+ and D- of the paper's Algorithm 1).

Spans are found on text, before any tokenizer: `data.tokenize` turns them into token weights by character offsets.
"""

from __future__ import annotations

import bisect
import dataclasses
import re
from collections.abc import Iterable
from typing import Literal, NamedTuple, get_args

from iterpref_jax.codeflow import fences, lcs
from iterpref_jax.codeflow.draws import draw
from iterpref_jax.codeflow.syntax import line_spans
from iterpref_jax.errors import UserError, did_you_mean

Span = tuple[int, int]
Mode = Literal["line", "token", "prefix_suffix", "augment"]
Empty = Literal["drop", "keep", "anchor"]
# A stretch of y- and the stretch of y+ that took its place; one of the two may have length zero.
_Edit = tuple[Span, Span]

# Strings are not one token: a wrong word in a message is a fault of that word, and broken programs have open quotes.
_TOKEN = re.compile(
    r"""\r\n | [\r\n] | [^\S\r\n]+ | \w+
    | \*\*= | //= | >>= | <<= | \.\.\. | [-+*/%@&|^:=!<>]= | -> | \*\* | // | << | >> | .""",
    re.VERBOSE | re.DOTALL,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FocusSettings:
    """How the focus is found.

    `mode`: "line", the lines not in the longest common subsequence; "token", inside replaced blocks of lines only the
    differing lexical tokens, or where the rejected side has none of its own an anchor at the first that it lacks;
    "prefix_suffix", all lines between the common first and last lines; "augment", the lines of "line" and 1 or 2 lines
    before and after each run of them, the number fixed per pair by `seed`.
    `empty`: what becomes of a rejected side without focus (the repair only inserts): "drop", it stays empty and the
    filter `empty_focus` drops the pair; "keep", it stays empty and so does the pair; "anchor", zero-length spans where
    the insertions belong.
    """

    mode: Mode
    empty: Empty
    seed: int

    def __post_init__(self) -> None:
        for name, value, known in (("mode", self.mode, get_args(Mode)), ("empty", self.empty, get_args(Empty))):
            if value not in known:
                hint = did_you_mean(str(value), known)
                raise UserError(f"focus {name} must be one of {', '.join(known)}, not {value!r}{hint}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Focus:
    """Rising, disjoint character spans [start, end) of both sides.

    A zero-length span (p, p), on the rejected side only, is an anchor: where the text goes on otherwise than the chosen
    one. It stands for the first token that ends after p and is not in the common token prefix of both sides, or for the
    end-of-sequence token if p is the end of the text.
    """

    chosen: tuple[Span, ...]
    rejected: tuple[Span, ...]

    @property
    def is_empty(self) -> bool:
        """Whether the rejected side has neither a focus nor an anchor."""
        return not self.rejected


def find_focus(
    chosen: str, rejected: str, settings: FocusSettings, key: str, *, fenced: bool = False, prompt: str = ""
) -> Focus:
    """Returns the focus of a pair; `key` (its pair_id) seeds the mode "augment".

    Lines are compared without their terminators and a span runs through its terminator, so line ends alone are never a
    focus. With `fenced` (completions in Markdown, behind `prompt`), only what lies inside fenced blocks counts in a
    text that has one; an anchor may then be the closing fence: the place where the code should have gone on.
    """
    side, other = (_Side.of(text, prompt if fenced else None) for text in (rejected, chosen))
    edits = _edits(side, other, settings, key)
    lacking: list[_Edit] = []
    if settings.mode == "token":
        edits, lacking = _token_edits(side, other, edits)
    spans = [piece for span, _ in edits for piece in side.clipped(span)]
    if not lacking and not spans and settings.empty == "anchor":
        # Of the lines themselves: context and ends are wider than what is inserted.
        lacking = _edits(side, other, dataclasses.replace(settings, mode="line"), key)
    spans += _anchors(side, other, lacking)
    return Focus(chosen=_merged(piece for _, span in edits for piece in other.clipped(span)), rejected=_merged(spans))


def focus_lines(text: str, spans: Iterable[Span]) -> list[str]:
    """Returns the whole lines of `text`, with their terminators, that `spans` touch; anchors touch none."""
    focus = _merged(span for span in spans if span[0] < span[1])
    ends = [end for _, end in focus]
    lines = []
    for start, end in line_spans(text):
        first = bisect.bisect_right(ends, start)
        if first < len(focus) and focus[first][0] < end:
            lines.append(text[start:end])
    return lines


class _Side(NamedTuple):
    """A completion and the spans of it that are code."""

    text: str
    inside: list[Span]

    @classmethod
    def of(cls, text: str, prompt: str | None) -> _Side:
        """Returns what is code behind a prompt, or without one all of the text."""
        return cls(text, [(0, len(text))] if prompt is None else fences.code_spans(text, prompt))

    def clipped(self, span: Span) -> list[Span]:
        """Returns the parts of a span that are code."""
        pieces = ((max(span[0], start), min(span[1], end)) for start, end in self.inside)
        return [(start, end) for start, end in pieces if start < end]

    def lines(self, of_code: bool) -> list[Span]:
        spans = line_spans(self.text)
        return [span for span in spans if self.clipped(span)] if of_code else spans


def _edits(side: _Side, other: _Side, settings: FocusSettings, key: str) -> list[_Edit]:
    # Ends of the whole texts would be prose, and all code lie between them.
    spans, others = (one.lines(of_code=settings.mode == "prefix_suffix") for one in (side, other))
    a, b = (
        [one.text[slice(*span)].rstrip("\r\n") for span in lines] for one, lines in ((side, spans), (other, others))
    )
    blocks = [between_ends(a, b)] if settings.mode == "prefix_suffix" else _blocks(a, b)
    if settings.mode == "augment":
        blocks = _widened(blocks, 1 + draw(settings.seed, "augment", key) % 2, len(a), len(b))
    starts = side.inside[0][0], other.inside[0][0]
    return [(_stretch(spans, block[0], starts[0]), _stretch(others, block[1], starts[1])) for block in blocks]


def _anchors(side: _Side, other: _Side, edits: Iterable[_Edit]) -> list[Span]:
    """Returns where the code of `side` goes on otherwise than what the other has inserted."""
    places = []
    for (_, place), inserted in edits:
        if other.clipped(inserted):
            # What is inserted mostly begins as what it stands before (indentation), and is right up to there.
            place += _common(side.text[place:], other.text[inserted[0] :])
            places += [place] if any(start <= place <= end for start, end in side.inside) else []
    return [(place, place) for place in places]


def _common(one: str, other: str) -> int:
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _blocks(a: list[str], b: list[str]) -> list[_Edit]:
    """The stretches of both sequences that lie between the matches of their longest common subsequence."""
    blocks = []
    i = j = 0
    for next_i, next_j in [*lcs.matches(a, b), (len(a), len(b))]:
        if i < next_i or j < next_j:
            blocks.append(((i, next_i), (j, next_j)))
        i, j = next_i + 1, next_j + 1
    return blocks


def between_ends(a: list[str], b: list[str]) -> tuple[Span, Span]:
    """Returns the parts of `a` and of `b`, [start, end), that lie between their common first and last lines."""
    shorter = min(len(a), len(b))
    head = next((n for n in range(shorter) if a[n] != b[n]), shorter)
    tail = next((n for n in range(shorter - head) if a[-1 - n] != b[-1 - n]), shorter - head)
    return (head, len(a) - tail), (head, len(b) - tail)


def _widened(blocks: list[_Edit], count: int, *lengths: int) -> list[_Edit]:
    def widen(span: Span, length: int) -> Span:
        # Nothing stays nothing: the context of a focus, not of an insertion on the other side.
        return span if span[0] == span[1] else (max(0, span[0] - count), min(length, span[1] + count))

    return [(widen(one, lengths[0]), widen(other, lengths[1])) for one, other in blocks]


def _stretch(spans: list[Span], indices: Span, start: int) -> Span:
    """Characters from the first to the last of `spans[slice(*indices)]`; where there is none, the place between.

    `start` is that place where there are no spans at all.
    """
    first, last = indices
    if first < last:
        return spans[first][0], spans[last - 1][1]
    place = spans[first][0] if first < len(spans) else (spans[-1][1] if spans else start)
    return place, place


def _token_edits(side: _Side, other: _Side, edits: Iterable[_Edit]) -> tuple[list[_Edit], list[_Edit]]:
    """Returns the edits of lexical tokens, and those in lines of `side` that only lack some."""
    finer, lacking = [], []
    for edit in edits:
        (start, end), (other_start, other_end) = edit
        if start == end or other_start == other_end:
            finer.append(edit)
            continue
        spans = [match.span() for match in _TOKEN.finditer(side.text, start, end)]
        others = [match.span() for match in _TOKEN.finditer(other.text, other_start, other_end)]
        blocks = _blocks(_lexemes(side.text, spans), _lexemes(other.text, others))
        found = [(_stretch(spans, one, start), _stretch(others, two, other_start)) for one, two in blocks]
        finer += found
        lacking += found if all(place == stop for (place, stop), _ in found) else []
    return finer, lacking


def _lexemes(text: str, spans: list[Span]) -> list[str]:
    words = (text[start:end] for start, end in spans)
    return ["\n" if word in ("\r\n", "\r") else word for word in words]


def _merged(spans: Iterable[Span]) -> tuple[Span, ...]:
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return tuple(merged)
