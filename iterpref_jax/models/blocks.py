"""Large arrays block by block: where the blocks lie, and fast contiguous copies of transposed views."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

# Reading a checkpoint holds a few blocks at a time: small beside one tensor of a large model, large beside the cost of
# one dispatch to the devices.
BLOCK_BYTES = 1 << 23
# Source rows that are transposed together. Each gives one short run in every output row, so a few stay in the cache.
_TRANSPOSED_ROWS = 16


def equal_blocks(shape: tuple[int, ...], itemsize: int, limit: int) -> Iterator[tuple[slice, ...]]:
    """Yields slices that cover an array of `shape`, all of one size of at most `limit` bytes, in memory order.

    The last one overlaps the one before it where the size does not come out even: one size is one compiled program.
    """
    axis, inner = 0, math.prod(shape[1:]) * itemsize
    while axis < len(shape) - 1 and inner > limit:
        axis += 1
        inner //= max(shape[axis], 1)
    if not shape:
        yield ()
        return
    rows = min(shape[axis], max(1, limit // max(inner, 1)))
    whole = tuple(slice(0, size) for size in shape[axis + 1 :])
    for outer in np.ndindex(*shape[:axis]):
        for begin in range(0, shape[axis], max(rows, 1)):
            begin = min(begin, shape[axis] - rows)
            yield (*(slice(i, i + 1) for i in outer), slice(begin, begin + rows), *whole)


def contiguous(view: np.ndarray) -> np.ndarray:
    """Returns a C-contiguous copy of a view that reorders dims.

    NumPy's own copy of a large transpose misses the cache on every element; this takes a few source rows at a time.
    """
    merged = view.reshape(_merged(view.shape, view.strides))
    out = np.empty(merged.shape, view.dtype)
    reordered = merged.ndim > 1 and abs(merged.strides[-1]) != view.itemsize
    step = _TRANSPOSED_ROWS if reordered else max(merged.shape[-1], 1)
    for begin in range(0, merged.shape[-1], step):
        out[..., begin : begin + step] = merged[..., begin : begin + step]
    return out.reshape(view.shape)


def _merged(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...]:
    """The shape with every two neighbours made one that are one run in memory; at least one dim."""
    sizes, steps = [1], [0]
    for size, step in zip(shape, strides, strict=True):
        if size == 1:
            continue
        if sizes[-1] == 1 or steps[-1] == size * step:
            sizes[-1], steps[-1] = sizes[-1] * size, step
        else:
            sizes.append(size)
            steps.append(step)
    return tuple(sizes)
