"""Random packed rows: several trees in preorder with deep and shallow branches, padding at the end."""

import numpy as np


def random_forest(rng, tokens, *, padding=5, branching=0.2, trees=0.05):
    """Returns visible_until [T], depth [T], and the parent of each used column (-1 at a root)."""
    parent, until, depth = [], np.zeros(tokens, np.int32), np.zeros(tokens, np.int32)
    used = tokens - int(rng.integers(0, padding))
    for column in range(used):
        # In preorder a new column hangs below the last one or one of its ancestors; sometimes a new tree starts.
        chain, node = [], column - 1
        while node >= 0:
            chain.append(node)
            node = parent[node]
        deeper = chain[0 if rng.random() >= branching else rng.integers(len(chain))] if chain else -1
        above = -1 if rng.random() < trees else deeper
        parent.append(above)
        depth[column] = 0 if above < 0 else depth[above] + 1
        for node in [column, *(chain[chain.index(above) :] if above >= 0 else [])]:
            until[node] = column + 1
    return until, depth, parent


def dense_mask(until, depth, window):
    """Whether query i sees key j, [R, i, j], straight from the contract."""
    column = np.arange(until.shape[1])
    seen = (column <= column[:, None]) & (column[:, None] < until[:, None, :])
    return seen if window is None else seen & (depth[:, :, None] - depth[:, None, :] < window)
