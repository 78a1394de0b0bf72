"""Blocks that cover an array, and copies of views."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iterpref_jax.models.blocks import contiguous, equal_blocks

SHAPES = st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple)


@given(SHAPES, st.integers(1, 400))
def test_blocks_cover_the_array_and_have_one_size_within_the_limit(shape, limit):
    blocks = list(equal_blocks(shape, 4, limit))
    seen, sizes = np.zeros(shape, int), set()
    for block in blocks:
        seen[block] += 1
        sizes.add(seen[block].shape)
    assert seen.min() >= 1
    (size,) = sizes
    assert np.prod(size) * 4 <= max(limit, 4)
    # Overlaps stay below one more block along the axis that is cut.
    assert len(blocks) <= 2 * np.ceil(np.prod(shape) / np.prod(size))


@given(SHAPES, st.integers(1, 400))
def test_blocks_come_in_the_order_of_memory_and_each_is_one_run(shape, limit):
    flat = np.arange(np.prod(shape)).reshape(shape)
    starts = []
    for block in equal_blocks(shape, 4, limit):
        numbers = flat[block].reshape(-1)
        np.testing.assert_array_equal(numbers, np.arange(numbers[0], numbers[0] + len(numbers)))
        starts.append(numbers[0])
    assert starts == sorted(set(starts))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("shape", [(5,), (40, 33), (3, 17, 20), (2, 18, 1, 19), (1, 1, 1)])
def test_a_copy_of_every_transpose_equals_numpys(shape, dtype):
    array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    for order in itertools.permutations(range(len(shape))):
        view = array.transpose(order)
        for part in (view, view[..., 1:], view[::2], view[None]):
            copy = contiguous(part)
            assert copy.flags.c_contiguous
            assert not np.shares_memory(copy, array)
            np.testing.assert_array_equal(copy, part)
