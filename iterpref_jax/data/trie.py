"""Sequences that share beginnings, as columns of a row: a trie in preorder, in which every subtree is one interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from iterpref_jax.data.schema import common_prefix


class Columns(NamedTuple):
    """The columns [t] of a trie; the fields are those of `RowBatch`."""

    tokens: np.ndarray
    depth: np.ndarray
    visible_until: np.ndarray


def preorder(branches: Sequence[np.ndarray], *, share: bool) -> tuple[Columns, list[np.ndarray]]:
    """Returns the columns of the trie of `branches`, and of every branch the column at each of its positions.

    A branch hangs on the branches before it where it leaves them, and adds its tail: one run of columns. Behind a tail
    lie the branches that hang on it, the deepest first (of equally deep ones the earlier), so that what follows a
    column up to the end of its subtree are its descendants. Without `share` nothing is common to two branches.
    """
    starts, parents = _hang(branches, share)
    tokens, depth, until = np.empty((3, sum(map(len, branches)) - sum(starts)), np.int32)
    paths, end = [np.zeros(0, np.int32)] * len(branches), 0
    for number in _order(starts, parents):
        branch, start = branches[number], starts[number]
        begin, end = end, end + len(branch) - start
        tokens[begin:end] = branch[start:]
        depth[begin:end] = np.arange(start, len(branch))
        paths[number] = np.concatenate([paths[parents[number]][:start], np.arange(begin, end, dtype=np.int32)])
        # The subtree of every column of the branch reaches as far as the branch itself.
        until[paths[number]] = end
    return Columns(tokens, depth, until), paths


def _hang(branches: Sequence[np.ndarray], share: bool) -> tuple[list[int], list[int]]:
    """Returns where each branch leaves those before it, and the first one that it agrees with that far."""
    starts, parents = [0], [0]
    for number in range(1, len(branches)):
        common = [common_prefix(branches[number], other) if share else 0 for other in branches[:number]]
        starts.append(max(common))
        parents.append(common.index(starts[-1]))
    return starts, parents


def _order(starts: list[int], parents: list[int]) -> list[int]:
    order, waiting = [], [0]
    while waiting:
        order.append(waiting.pop())
        hanging = [n for n in range(1, len(parents)) if parents[n] == order[-1]]
        waiting += sorted(hanging, key=lambda n: (starts[n], -n))
    return order
