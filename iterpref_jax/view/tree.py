"""The trees that `layout.lay_out` makes of pairs, read back: who uses a column, what is left out, what is gathered.

Nothing here computes a layout: everything shown comes out of the arrays that the model would get.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from iterpref_jax.data import layout, schema

Kind = Literal["prompt", "common", "tail"]
State = Literal["read", "idle", "left out"]

# A column's owners: bits, one per side.
CHOSEN, REJECTED, BOTH = 1, 2, 3
OWNERS = {CHOSEN: "chosen", REJECTED: "rejected", BOTH: "both"}
# Where a pair's columns are drawn: what both sides use lies half way between their lanes.
LANES = {"chosen": 0.0, "both": 0.5, "rejected": 1.0}
NAMES = ("separate", "separate+truncate", "shared", "shared+truncate")
FOCAL = NAMES[-1]
# All pairs of a group, shown beside the layouts of one pair.
GROUP = "tree+truncate"


class Segment(NamedTuple):
    """Positions [start, end) in a branch. "idle": the model computes them, but no loss depends on them."""

    kind: Kind
    owner: str
    lane: float
    start: int
    end: int
    state: State


class Marks(NamedTuple):
    """Positions [start, end) of a lane whose columns' hidden states are gathered for targets of `side`."""

    side: str
    lane: float
    start: int
    end: int


class Picture(NamedTuple):
    """One layout of `pairs` pairs: its size, its segments by position, and its gathered positions.

    `whole` is the number of tokens of the same pairs as separate sequences.
    """

    name: str
    pairs: int
    tokens: int
    whole: int
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
    """Sums over many pairs: tokens by layout, targets, and the mean of the pairs' saving factors.

    Where pairs have one chosen side, `tokens[GROUP]` are those of their trees, at most.
    """

    pairs: int
    tokens: dict[str, int]
    targets: int
    mean_saving: float


def summary(index: schema.Index, weighting: layout.Weighting) -> Summary:
    """Returns the sums over the pairs of an index, without reading a record."""
    names = (*NAMES, GROUP) if (index.previous_len >= 0).any() else NAMES
    costs = {name: layout.costs(index, row_settings(name), weighting) for name in names}
    whole, focal = costs[NAMES[0]].tokens, costs[FOCAL].tokens
    return Summary(
        pairs=len(index),
        tokens={name: int(cost.whole_groups()[0].sum()) for name, cost in costs.items()},
        targets=int(costs[FOCAL].targets.sum()),
        mean_saving=float(np.mean(whole / np.maximum(focal, 1))) if len(index) else 1.0,
    )


def row_settings(name: str) -> layout.RowSettings:
    """Returns the settings of one of `NAMES` or `GROUP`; the caps do not matter to a single tree."""
    kind, _, truncate = name.partition("+")
    return layout.RowSettings(
        layout=kind, truncate=bool(truncate), tokens=1, lengths=0, targets=0, pairs=0, rows_per_microbatch=1
    )


def owners(tree: layout.Tree) -> np.ndarray:
    """Returns which sides use each column: `CHOSEN`, `REJECTED` or `BOTH`; shape (t,)."""
    owner = np.zeros(len(tree.tokens), np.int64)
    for slot, path in enumerate(tree.paths):
        owner[path] |= 1 << slot % 2
    return owner


def is_read(tree: layout.Tree) -> np.ndarray:
    """Returns whether any loss depends on each column: a gathered column lies in its subtree; shape (t,)."""
    sources = np.sort(tree.source)
    first = np.searchsorted(sources, np.arange(len(tree.tokens)))
    return first < np.searchsorted(sources, tree.visible_until)


def column_of(tree: layout.Tree, side: int, length: int) -> np.ndarray:
    """Returns the column at each position of a completion with its prompt, -1 where there is none; shape (length,)."""
    path = tree.paths[side]
    return np.concatenate([path, np.full(length - len(path), -1)])


def picture(name: str, tree: layout.Tree, example: schema.Example, whole: int) -> Picture:
    """Returns what one layout makes of a pair."""
    about = schema.counts(example)
    bounds = (about["prompt_len"], about["prompt_len"] + about["common_len"])
    owner = owners(tree)
    lanes = np.array([0.0, *(LANES[OWNERS[bits]] for bits in (CHOSEN, REJECTED, BOTH))])[owner]
    segments = [*_segments(tree, _kinds(tree.depth, bounds), owner, lanes)]
    for side, path in zip(("chosen", "rejected"), tree.paths, strict=True):
        edges = (0, *bounds, bounds[0] + about[f"{side}_len"])
        segments += _left_out(side, LANES[side], len(path), edges)
    return Picture(name, 1, len(tree.tokens), whole, len(tree.target), tuple(segments), tuple(_marks(tree, lanes)))


def group_picture(tree: layout.Tree, examples: Sequence[schema.Example], whole: int) -> Picture:
    """Returns the tree of all pairs of a group: a lane for the chosen side and one for each rejected side.

    What several branches use is drawn once, in the lane of the first of them.
    """
    branches = [max(tree.paths[::2], key=len), *tree.paths[1::2]]
    users, lanes = np.zeros(len(tree.tokens), np.int64), np.zeros(len(tree.tokens))
    for lane, path in reversed(list(enumerate(branches))):
        users[path] += 1
        lanes[path] = lane
    prompt = len(examples[0].prompt_ids)
    kinds = np.where(tree.depth < prompt, 0, np.where(users > 1, 1, 2))
    owner = np.where(users > 1, BOTH, np.where(lanes > 0, REJECTED, CHOSEN))
    segments = [*_segments(tree, kinds, owner, lanes)]
    sequences = [examples[0].chosen_ids, *(example.rejected_ids for example in examples)]
    for lane, (path, ids) in enumerate(zip(branches, sequences, strict=True)):
        edges = (0, prompt, prompt, prompt + len(ids))
        segments += _left_out("rejected" if lane else "chosen", lane, len(path), edges)
    return Picture(
        GROUP, tree.pairs, len(tree.tokens), whole, len(tree.target), tuple(segments), tuple(_marks(tree, lanes))
    )


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


def _segments(tree: layout.Tree, kinds: np.ndarray, owner: np.ndarray, lanes: np.ndarray) -> Iterator[Segment]:
    read = is_read(tree)
    for start, end in _groups(kinds, owner, lanes, read, tree.depth - np.arange(len(tree.depth))):
        places = int(tree.depth[start]), int(tree.depth[end - 1]) + 1
        state: State = "read" if read[start] else "idle"
        yield Segment(_KINDS[kinds[start]], OWNERS[int(owner[start])], float(lanes[start]), *places, state)


def _left_out(name: str, lane: float, begin: int, edges: tuple[int, ...]) -> Iterator[Segment]:
    for kind, (start, end) in zip(_KINDS, itertools.pairwise(edges), strict=True):
        if max(start, begin) < end:
            yield Segment(kind, name, lane, max(start, begin), end, "left out")


def _marks(tree: layout.Tree, lanes: np.ndarray) -> Iterator[Marks]:
    for side, name in ((layout.CHOSEN, "chosen"), (layout.REJECTED, "rejected")):
        sources = np.unique(tree.source[tree.term[tree.slot % 2 == side]])
        for start, end in _groups(lanes[sources], tree.depth[sources] - np.arange(len(sources))):
            first = int(tree.depth[sources[start]])
            yield Marks(name, float(lanes[sources[start]]), first, first + end - start)
