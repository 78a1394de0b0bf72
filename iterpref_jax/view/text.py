"""Text for the eye: lines cut into tokens, with focus, and a mark for every character that an eye would miss.

Code of a dataset is untrusted: control characters, escape sequences of terminals and characters that turn the writing
direction become visible marks here, for the terminal and the page alike.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from iterpref_jax.codeflow import focus as focusing
from iterpref_jax.codeflow import lcs
from iterpref_jax.codeflow.syntax import line_spans

# The ones that real code has; every other one is shown by its number.
CONTROLS = {"\r": "CR", "\x1b": "ESC", "\x00": "NUL", "\x08": "BS", "\x0c": "FF"}

Kind = Literal["text", "space", "tab", "newline", "char", "bytes", "special"]


class Place(NamedTuple):
    """Where a token stands: characters [start, end) of a text; empty for the later bytes of a split character."""

    start: int
    end: int
    token_bytes: bytes
    is_special: bool


class Part(NamedTuple):
    """Characters of one kind: "space" are trailing ones, "char" what is no visible character, "bytes" a token of none.

    `text` is what stands in the text (for "bytes": what the token holds, in hexadecimal).
    """

    kind: Kind
    text: str
    is_focus: bool


class Run(NamedTuple):
    """What one token (its number, or None without a tokenizer) has in one line; `is_start`: the token begins here."""

    token: int | None
    is_start: bool
    parts: tuple[Part, ...]


class Line(NamedTuple):
    """One line; `number` counts from 1 and leaves out fences, an anchor (a focus without characters) lies in it."""

    number: int | None
    is_focus: bool
    has_anchor: bool
    runs: tuple[Run, ...]


def decode(pieces: Sequence[bytes], special: Sequence[bool]) -> tuple[str, list[Place]]:
    """Returns the text of tokens and the place of each; a character split over tokens belongs to its first one.

    Bytes that are not UTF-8 become lone surrogates (as `surrogateescape` has it), which are shown as marks.
    """
    text = b"".join(pieces).decode(errors="surrogateescape")
    sizes = [1 if "\udc80" <= char <= "\udcff" else len(char.encode(errors="replace")) for char in text]
    ends = np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
    char_starts = np.cumsum([0, *sizes])[:-1]
    places = [0, *np.searchsorted(char_starts, ends).tolist()]
    return text, [Place(*place) for place in zip(places[:-1], places[1:], pieces, special, strict=True)]


def lines(text: str, places: Sequence[Place], spans: Iterable[focusing.Span], fences: tuple[str, str]) -> list[Line]:
    """Returns the lines of `text`, cut at tokens and at focus `spans` (zero-length: anchors).

    Without `places` a line is one run. `fences` are the opening and closing text around a program; their lines get no
    number.
    """
    spans = list(spans)
    rows = line_spans(text) or [(0, 0)]
    cuts = _Cuts(text, [span for span in spans if span[0] < span[1]])
    numbers = _numbers(text, rows, fences)
    anchors = {_row_of(start, rows) for start, end in spans if start == end}
    found = []
    for row, runs in enumerate(_runs(cuts, rows, places)):
        is_focus = any(part.is_focus for run in runs for part in run.parts)
        found.append(Line(numbers[row], is_focus, row in anchors, runs))
    return found


def flow(text: str, places: Sequence[Place]) -> list[Run]:
    """Returns the tokens of `text` one after the other, not cut at lines."""
    cuts = _Cuts(text, [])
    return [cuts.run(number, place, 0, len(text)) for number, place in enumerate(places)]


def line_text(line: Line) -> str:
    """Returns the characters of a line, its end included."""
    return "".join(part.text for run in line.runs for part in run.parts if part.kind != "bytes")


def aligned(chosen: Sequence[Line], rejected: Sequence[Line]) -> list[tuple[Line | None, Line | None]]:
    """Returns the lines side by side: equal ones (the longest common subsequence) at one height."""
    a, b = ([line_text(line).rstrip("\r\n") for line in side] for side in (chosen, rejected))
    rows: list[tuple[Line | None, Line | None]] = []
    i = j = 0
    for next_i, next_j in [*lcs.matches(a, b), (len(a), len(b))]:
        rows += itertools.zip_longest(chosen[i:next_i], rejected[j:next_j])
        rows += zip(chosen[next_i : next_i + 1], rejected[next_j : next_j + 1], strict=True)
        i, j = next_i + 1, next_j + 1
    return rows


def mark(part: Part) -> str:
    """Returns what stands for the characters of a part: itself, or visible signs."""
    if part.kind == "text":
        return part.text
    signs = {"space": "·", "tab": "⇥", "newline": "↵"}
    if part.kind in signs:
        return signs[part.kind] * (1 if part.kind == "newline" else len(part.text))
    if part.kind == "char":
        return "".join(map(_code_point, part.text))
    return part.text


def shortened(found: Iterable[Line], limit: int) -> str:
    """Returns the text of lines as one line of at most `limit` characters, special tokens left out."""
    parts = (part for line in found for run in line.runs for part in run.parts if part.kind != "special")
    text = " ".join("".join(part.text if part.kind == "newline" else mark(part) for part in parts).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


class _Cuts:
    """A text with its focus, ready to be cut."""

    def __init__(self, text: str, spans: list[focusing.Span]):
        self._text, self._spans = text, spans
        self._bounds = sorted({bound for span in spans for bound in span})

    def run(self, number: int, place: Place, start: int, end: int) -> Run:
        """The part of a token within the line [start, end)."""
        first, last = max(place.start, start), min(place.end, end)
        is_start = place.start >= start
        if place.is_special:
            parts = [Part("special", self._text[first:last], self._in_focus(first))] if first < last else []
        elif place.start == place.end:
            parts = [Part("bytes", place.token_bytes.hex(" ").upper(), False)]
        else:
            parts = list(self.parts(first, last, end))
        return Run(number, is_start, tuple(parts))

    def parts(self, start: int, end: int, line_end: int) -> Iterator[Part]:
        """Cuts [start, end) at focus bounds and at characters that need a mark."""
        inner = self._bounds[bisect.bisect_right(self._bounds, start) : bisect.bisect_left(self._bounds, end)]
        trailing = self._trailing(start, line_end)
        for first, last in itertools.pairwise([start, *inner, end]):
            is_focus = self._in_focus(first)
            kinds: list[Kind] = [self._kind(place, trailing) for place in range(first, last)]
            for kind, group in itertools.groupby(kinds):
                size = len(list(group))
                yield Part(kind, self._text[first : first + size], is_focus)
                first += size

    def _kind(self, place: int, trailing: int) -> Kind:
        char = self._text[place]
        if char in "\n\t":
            return "newline" if char == "\n" else "tab"
        if char == " ":
            return "space" if place >= trailing else "text"
        return "text" if char.isprintable() else "char"

    def _trailing(self, start: int, line_end: int) -> int:
        """Where the spaces at the end of the line begin."""
        place = line_end
        while place > start and self._text[place - 1] in " \t\r\n":
            place -= 1
        return place

    def _in_focus(self, place: int) -> bool:
        before = bisect.bisect_right(self._spans, (place, len(self._text) + 1)) - 1
        return before >= 0 and place < self._spans[before][1]


def _runs(cuts: _Cuts, rows: list[focusing.Span], places: Sequence[Place]) -> Iterator[tuple[Run, ...]]:
    """Yields the runs of every line."""
    owners = [_row_of(place.start, rows) for place in places]
    for row, (start, end) in enumerate(rows):
        if not places:
            yield (Run(None, True, tuple(cuts.parts(start, end, end))),)
            continue
        first = bisect.bisect_left(owners, row)
        # The line may begin inside a token of the line before ("\n\n" is one token).
        while first and places[first - 1].end > start:
            first -= 1
        last = bisect.bisect_right(owners, row)
        yield tuple(cuts.run(number, places[number], start, end) for number in range(first, last))


def _row_of(place: int, rows: list[focusing.Span]) -> int:
    """The line in which a character stands; the last one for the end of the text."""
    return bisect.bisect_right(rows, place, key=lambda row: row[0]) - 1


def _numbers(text: str, rows: list[focusing.Span], fences: tuple[str, str]) -> list[int | None]:
    opening, closing = fences
    fenced = bool(opening) and text.startswith(opening)
    skipped = set()
    if fenced:
        skipped = {0} | ({len(rows) - 1} if text[slice(*rows[-1])].startswith(closing) else set())
    counter = itertools.count(1)
    return [None if row in skipped else next(counter) for row in range(len(rows))]


def _code_point(char: str) -> str:
    if "\udc80" <= char <= "\udcff":
        return f"⟨{ord(char) - 0xDC00:02X}⟩"
    return f"⟨{CONTROLS.get(char, f'U+{ord(char):04X}')}⟩"
