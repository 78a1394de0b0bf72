"""The trees that `layout.lay_out` makes of one pair, read back: who uses a column, what is left out, what is gathered.

Nothing here computes a layout: everything shown comes out of the arrays that the model would get.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np

from iterpref_jax.data import layout, schema

Kind = Literal["prompt", "common", "tail"]
State = Literal["read", "idle", "left out"]

# A column's owners: bits, one per side.
CHOSEN, REJECTED, BOTH = 1, 2, 3
OWNERS = {CHOSEN: "chosen", REJECTED: "rejected", BOTH: "both"}
NAMES = ("separate", "separate+truncate", "shared", "shared+truncate")
FOCAL = NAMES[-1]


class Segment(NamedTuple):
    """Positions [start, end) in a branch. "idle": the model computes them, but no loss depends on them."""

    kind: Kind
    owner: str
    start: int
    end: int
    state: State


class Marks(NamedTuple):
    """Positions [start, end) of `owner`'s columns whose hidden states are gathered for targets of `side`."""

    side: str
    owner: str
    start: int
    end: int


class Picture(NamedTuple):
    """One layout of a pair: its size, its segments by position, and its gathered positions."""

    name: str
    tokens: int
    targets: int
    segments: tuple[Segment, ...]
    marks: tuple[Marks, ...]


class Stretch(NamedTuple):
    """Columns [start, end) of a tree of one kind and owner, as they follow each other in the row."""

    kind: Kind
    owner: str
    start: int
    end: int


class Summary(NamedTuple):
    """Sums over many pairs: tokens by layout, targets, and the mean of the pairs' saving factors."""

    pairs: int
    tokens: dict[str, int]
    targets: int
    mean_saving: float


def summary(index: schema.Index, weighting: layout.Weighting) -> Summary:
    """Returns the sums over the pairs of an index, without reading a record."""
    costs = {name: layout.costs(index, row_settings(name), weighting) for name in NAMES}
    whole, focal = costs[NAMES[0]].tokens, costs[FOCAL].tokens
    return Summary(
        pairs=len(index),
        tokens={name: int(cost.tokens.sum()) for name, cost in costs.items()},
        targets=int(costs[FOCAL].targets.sum()),
        mean_saving=float(np.mean(whole / np.maximum(focal, 1))) if len(index) else 1.0,
    )


def row_settings(name: str) -> layout.RowSettings:
    """Returns the settings of one of `NAMES`; the caps do not matter to a single tree."""
    kind, _, truncate = name.partition("+")
    return layout.RowSettings(layout=kind, truncate=bool(truncate), tokens=1, targets=0, pairs=0, rows_per_microbatch=1)


def owners(tree: layout.Tree) -> np.ndarray:
    """Returns which completions use each column: `CHOSEN`, `REJECTED` or `BOTH`; shape (t,)."""
    columns = np.arange(len(tree.tokens))
    present = [side for side in (layout.CHOSEN, layout.REJECTED) if (tree.side == side).any()]
    if len(present) < 2:
        return np.full(len(columns), 1 << present[0] if present else CHOSEN)
    branches = np.flatnonzero(np.diff(tree.depth) != 1) + 1
    if branches.size:
        trunk = np.where(tree.visible_until > branches[0], BOTH, CHOSEN)
        return np.where(columns < branches[0], trunk, REJECTED)
    # One branch: the shorter completion is a beginning of the longer one and ends where it is last used.
    last = [tree.source[tree.side == side].max() for side in present]
    return np.where(columns <= min(last), BOTH, 1 << int(np.argmax(last)))


def is_read(tree: layout.Tree) -> np.ndarray:
    """Returns whether any loss depends on each column: a gathered column lies in its subtree; shape (t,)."""
    sources = np.sort(tree.source)
    first = np.searchsorted(sources, np.arange(len(tree.tokens)))
    return first < np.searchsorted(sources, tree.visible_until)


def column_of(tree: layout.Tree, side: int, length: int) -> np.ndarray:
    """Returns the column at each position of a completion with its prompt, -1 where there is none; shape (length,)."""
    columns = np.full(length, -1)
    own = np.flatnonzero(owners(tree) & (1 << side)) if (tree.side == side).any() else np.zeros(0, np.int64)
    columns[tree.depth[own]] = own
    return columns


def picture(name: str, tree: layout.Tree, example: schema.Example) -> Picture:
    """Returns what one layout makes of a pair."""
    about = schema.counts(example)
    bounds = (about["prompt_len"], about["prompt_len"] + about["common_len"])
    owner = owners(tree)
    segments = [*_segments(tree, owner, bounds), *_left_out(tree, owner, bounds, about)]
    return Picture(name, len(tree.tokens), len(tree.target), tuple(segments), tuple(_marks(tree, owner)))


def stretches(tree: layout.Tree, example: schema.Example) -> list[Stretch]:
    """Returns the columns of a tree in the row's order, by kind and owner."""
    about = schema.counts(example)
    kinds = _kinds(tree.depth, (about["prompt_len"], about["prompt_len"] + about["common_len"]))
    groups = _groups(kinds, owners(tree), tree.depth - np.arange(len(tree.depth)))
    return [Stretch(_KINDS[kinds[start]], OWNERS[int(owners(tree)[start])], start, end) for start, end in groups]


_KINDS: tuple[Kind, ...] = ("prompt", "common", "tail")


def _kinds(depth: np.ndarray, bounds: tuple[int, int]) -> np.ndarray:
    return np.searchsorted(bounds, depth, side="right")


def _groups(*columns: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yields the longest intervals in which no array changes."""
    table = np.stack(columns)
    if not table.shape[1]:
        return
    changes = np.flatnonzero((table[:, 1:] != table[:, :-1]).any(axis=0)) + 1
    yield from itertools.pairwise([0, *changes.tolist(), table.shape[1]])


def _segments(tree: layout.Tree, owner: np.ndarray, bounds: tuple[int, int]) -> Iterator[Segment]:
    kinds, read = _kinds(tree.depth, bounds), is_read(tree)
    for start, end in _groups(kinds, owner, read, tree.depth - np.arange(len(tree.depth))):
        places = int(tree.depth[start]), int(tree.depth[end - 1]) + 1
        yield Segment(_KINDS[kinds[start]], OWNERS[int(owner[start])], *places, "read" if read[start] else "idle")


def _left_out(
    tree: layout.Tree, owner: np.ndarray, bounds: tuple[int, int], about: dict[str, int]
) -> Iterator[Segment]:
    for side, name in ((layout.CHOSEN, "chosen"), (layout.REJECTED, "rejected")):
        used = tree.depth[(owner & (1 << side)) != 0]
        begin = int(used.max()) + 1 if used.size else 0
        edges = [0, *bounds, bounds[0] + about[f"{name}_len"]]
        for kind, (start, end) in zip(_KINDS, itertools.pairwise(edges), strict=True):
            if max(start, begin) < end:
                yield Segment(kind, name, max(start, begin), end, "left out")


def _marks(tree: layout.Tree, owner: np.ndarray) -> Iterator[Marks]:
    for side, name in ((layout.CHOSEN, "chosen"), (layout.REJECTED, "rejected")):
        sources = tree.source[tree.side == side]
        for start, end in _groups(owner[sources], tree.depth[sources] - np.arange(len(sources))):
            first = int(tree.depth[sources[start]])
            yield Marks(name, OWNERS[int(owner[sources[start]])], first, first + end - start)
