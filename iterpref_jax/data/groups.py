"""Groups of held-out pairs: by how the rejected side failed, by the size of the difference, by length.

A grouping gives every pair exactly one group, so that the counts of a grouping add up to the split.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np

from iterpref_jax.data.schema import Index

# Upper ends of the buckets, inclusive; a last one takes what is larger.
FOCUS_TOKENS = (8, 32, 128)
COMPLETION_TOKENS = (128, 256, 512, 1024)
UNKNOWN = "unknown"
OTHER = "other"


@dataclasses.dataclass(frozen=True)
class Grouping:
    """The names of the groups, and the number of each pair's group [pairs]."""

    names: tuple[str, ...]
    number: np.ndarray


def groupings(index: Index, error_types: Sequence[str], *, most: int) -> dict[str, Grouping]:
    """Returns the groupings of a split; of error types the `most` frequent have a group of their own, 0 = all.

    `focus_tokens` counts the differing tokens of both sides, `completion_tokens` those of the longer side.
    """
    focus = index.chosen_focus_count + index.rejected_focus_count
    return {
        "error_type": _by_name(error_types, most),
        "focus_tokens": _by_size(focus, FOCUS_TOKENS),
        "completion_tokens": _by_size(np.maximum(index.chosen_len, index.rejected_len), COMPLETION_TOKENS),
    }


def _by_name(values: Sequence[str], most: int) -> Grouping:
    counts = collections.Counter(value or UNKNOWN for value in values)
    frequent = sorted(counts, key=lambda name: (-counts[name], name))
    names = frequent if not most or len(frequent) <= most else [*frequent[:most], OTHER]
    place = {name: number for number, name in enumerate(names)}
    return Grouping(tuple(names), np.array([place.get(value or UNKNOWN, len(names) - 1) for value in values], int))


def _by_size(sizes: np.ndarray, ends: Sequence[int]) -> Grouping:
    starts = [0, *(end + 1 for end in ends)]
    names = [f"{start}-{end}" for start, end in zip(starts, ends, strict=False)] + [f"{starts[-1]}+"]
    number = np.searchsorted(ends, sizes)
    used = np.unique(number)
    return Grouping(tuple(names[i] for i in used), np.searchsorted(used, number))
