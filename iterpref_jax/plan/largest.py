"""The largest microbatch that fits a device, found by compiling."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Tried:
    """One compilation: whether it fits, the peak that it needs (None: not known), and the memory that there is."""

    fits: bool
    peak: int | None
    limit: int


def largest(attempt: Callable[[int], Tried], most: int, first: int) -> int:
    """Returns the largest number up to `most` that fits, or 0.

    The peak grows with the number nearly by a line, so two peaks say where it meets the limit; what they say is tried,
    and its neighbour, until a number fits and the next one does not. Without peaks the range is halved.
    """
    tried: dict[int, Tried] = {}
    low, high = 0, most + 1
    number = min(first, most)
    while high - low > 1:
        tried[number] = found = attempt(number)
        low, high = (number, high) if found.fits else (low, number)
        number = _next(tried, low, high, most)
    return low


def _next(tried: dict[int, Tried], low: int, high: int, most: int) -> int:
    known = sorted((number, one) for number, one in tried.items() if one.peak)
    if len(tried) > 5 or (len(tried) > 1 and len(known) < 2):
        return (low + high) // 2
    if len(known) < 2:
        # One peak: twice as many, or half.
        return min(2 * low, high - 1) if low else max(1, high // 2)
    # The two that are nearest to where the answer lies.
    (a, one), (b, other) = sorted(known, key=lambda entry: abs(entry[1].limit - (entry[1].peak or 0)))[:2]
    slope = ((other.peak or 0) - (one.peak or 0)) / (b - a)
    guess = a + ((one.limit - (one.peak or 0)) / slope if slope > 0 else most)
    return max(low + 1, min(high - 1, int(guess)))
