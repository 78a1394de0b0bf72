"""The longest common subsequence of two sequences, bit-parallel on Python's integers.

Source: H. Hyyro, "Bit-parallel LCS-length computation revisited" (2004). `difflib.SequenceMatcher` is no substitute: it
takes the longest *contiguous* match first and so finds common subsequences that are too short.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Sequence

ROWS = 4096


def matches(a: Sequence[Hashable], b: Sequence[Hashable]) -> list[tuple[int, int]]:
    """Returns the index pairs `(i, j)`, rising in both, of a longest common subsequence: `a[i] == b[j]`.

    Where several are longest: from the last pair to the first, each one lies as early as it can in `a`, then in `b`.
    Hence a common beginning is always matched to itself, and of repeated items the later ones stay over.

    Time: len(a) * len(b) bits, in words, without the common beginning (2,000 x 2,000 lines: a few ms). Memory: up to
    `ROWS` rows of len(a) bits as they are; of more, about the square root of their number is kept and time doubles.

    >>> matches("abcabba", "cbabac")
    [(1, 1), (3, 2), (4, 3), (6, 4)]
    """
    shorter = min(len(a), len(b))
    head = next((n for n in range(shorter) if a[n] != b[n]), shorter)
    rows = _Rows(a[head:], b[head:])
    pairs = []
    i, j = len(a) - head, len(b) - head
    while i and j:
        # A set bit i - 1 of row j says that a[i - 1] adds nothing to the LCS of a[:i] and b[:j].
        if rows[j] >> (i - 1) & 1:
            i -= 1
        elif not rows[j - 1] >> (i - 1) & 1:
            j -= 1
        else:
            i, j = i - 1, j - 1
            pairs.append((i + head, j + head))
    pairs.reverse()
    return [*((n, n) for n in range(head)), *pairs]


class _Rows:
    """The row vectors of `b` against `a`, to be asked for from the last to the first.

    Blocks of rows are made anew from the row in front of them when their turn comes: all of them at once are the size
    of the product, 4 GB for two programs of 190,000 tokens.
    """

    def __init__(self, a: Sequence[Hashable], b: Sequence[Hashable]):
        self._places = _places(a, set(b))
        self._full, self._b = (1 << len(a)) - 1, b
        self._size = len(b) + 1 if len(b) <= ROWS else math.isqrt(len(b)) + 1
        self._fronts = [self._full]
        while len(self._fronts) * self._size <= len(b):
            row = self._fronts[-1]
            for item in b[(len(self._fronts) - 1) * self._size : len(self._fronts) * self._size]:
                row = self._next(row, item)
            self._fronts.append(row)
        self._begin, self._block = len(b) + 1, []

    def __getitem__(self, j: int) -> int:
        # The walk asks for a row again only until it has asked for the one before.
        if j < self._begin:
            number = max(j - 1, 0) // self._size
            self._begin = number * self._size
            self._block = [self._fronts[number]]
            for item in self._b[self._begin : j]:
                self._block.append(self._next(self._block[-1], item))
        return self._block[j - self._begin]

    def _next(self, row: int, item: Hashable) -> int:
        hits = row & self._places.get(item, 0)
        return (row + hits | row - hits) & self._full


def _places(a: Sequence[Hashable], wanted: Collection[Hashable]) -> dict[Hashable, int]:
    """Returns of each wanted item the bits of its places in `a`."""
    places: dict[Hashable, int] = {}
    for index, item in enumerate(a):
        if item in wanted:
            places[item] = places.get(item, 0) | 1 << index
    return places
