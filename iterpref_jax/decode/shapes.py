"""Prompts as arrays of few shapes. A prompt's shape follows from its own length, and with it every rounding.

Letters: R row, T token.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from iterpref_jax.decode.slots import Placed, Slot

SHORTEST = 16

T = TypeVar("T")


class Prefill(NamedTuple):
    """Prompts, padded on the right, and the slots that they belong in; padding rows have a slot beyond the last."""

    tokens_RT: np.ndarray
    length_R: np.ndarray
    slot_R: np.ndarray


class Copy(NamedTuple):
    """The first `columns` of the source slots belong in the other slots too."""

    columns: int
    source_R: np.ndarray
    slot_R: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shapes:
    """Lengths are powers of two, up to the context; the rows of a length make up `tokens`.

    `row_shards`: rows are a multiple of it.
    """

    slots: int
    context: int
    tokens: int
    row_shards: int

    def columns(self, length: int) -> int:
        return min(max(SHORTEST, 1 << (length - 1).bit_length()), self.context)

    def rows(self, columns: int) -> int:
        rows = min(max(1, self.tokens // columns), self.slots)
        return -(-rows // self.row_shards) * self.row_shards

    def prefills(self, placed: Placed) -> Iterator[Prefill]:
        for columns, slots in self._batches(placed.prefills, lambda slot: slot):
            tokens_RT = np.zeros((self.rows(columns), columns), np.int32)
            length_R = np.zeros(len(tokens_RT), np.int32)
            for row, slot in enumerate(slots):
                length_R[row] = len(slot.prefix)
                tokens_RT[row, : len(slot.prefix)] = slot.prefix
            yield Prefill(tokens_RT, length_R, self._slot_numbers(columns, slots))

    def copies(self, placed: Placed) -> Iterator[Copy]:
        for columns, copies in self._batches(placed.copies, lambda copied: copied[1]):
            source_R = np.zeros(self.rows(columns), np.int32)
            source_R[: len(copies)] = [source for source, _ in copies]
            yield Copy(columns, source_R, self._slot_numbers(columns, [slot for _, slot in copies]))

    def _batches(self, items: Sequence[T], slot_of: Callable[[T], Slot]) -> Iterator[tuple[int, Sequence[T]]]:
        by_columns: dict[int, list[T]] = collections.defaultdict(list)
        for item in items:
            by_columns[self.columns(len(slot_of(item).prefix))].append(item)
        for columns, group in sorted(by_columns.items()):
            rows = self.rows(columns)
            yield from ((columns, group[start : start + rows]) for start in range(0, len(group), rows))

    def _slot_numbers(self, columns: int, slots: Sequence[Slot]) -> np.ndarray:
        slot_R = np.full(self.rows(columns), self.slots, np.int32)
        slot_R[: len(slots)] = [slot.number for slot in slots]
        return slot_R
