"""A leaf read block by block into the shards of a mesh equals the leaf put together whole."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from iterpref_jax.models import sharded_leaf
from iterpref_jax.models.sharded_leaf import StoredLeaf, make_leaf
from tests.support.meshes import placed

F32, BF16 = np.dtype("float32"), np.dtype("bfloat16")
HEADS = 4

VIEWS = {
    "same": lambda t: t,
    "transposed": np.transpose,
    "heads_out": lambda t: t.reshape(HEADS, -1, t.shape[1]).transpose(2, 0, 1),
    "heads_in": lambda t: t.reshape(t.shape[0], HEADS, -1).transpose(1, 2, 0),
    "one_head": lambda t: t.reshape(1, -1, t.shape[1]).transpose(2, 0, 1),
}
STACKS = [(), (3,), (2, 4)]


class Recorded:
    """A stored tensor in memory that keeps the ranges it was asked for."""

    def __init__(self, array):
        self.array, self.ranges = array, []

    @property
    def shape(self):
        return self.array.shape

    def elements(self, begin, end):
        self.ranges.append((begin, end))
        return self.array.reshape(-1)[begin:end]


def stored_leaf(view, stack, dtype=F32, shape=(24, 16)):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape, np.float32).astype(dtype) for _ in range(int(np.prod(stack)))]
    whole = np.stack([VIEWS[view](array) for array in arrays])
    tensors = [Recorded(array) for array in arrays]
    return StoredLeaf.of(tensors, stack, VIEWS[view]), whole.reshape(*stack, *whole.shape[1:]), tensors


@functools.cache
def mesh(**sizes):
    return placed(**sizes).mesh


def shardings(ndim):
    """One device; then shards along every dim, along two, and copies along the rest of the mesh."""
    yield SingleDeviceSharding(jax.devices()[1])
    for dim in range(ndim):
        other = "tensor" if ndim > 1 else None
        spec = [None] * ndim
        spec[dim] = "fsdp"
        yield NamedSharding(mesh(data=2, fsdp=2, tensor=2), PartitionSpec(*spec))
        spec[(dim + 1) % ndim] = spec[(dim + 1) % ndim] or other
        yield NamedSharding(mesh(data=1, fsdp=2, tensor=2), PartitionSpec(*spec))


def fits(shape, sharding):
    try:
        sharding.shard_shape(shape)
    except ValueError:
        return False
    return True


# Blocks of single numbers up to several tensors.
@pytest.mark.parametrize("block_bytes", [256, 1 << 10, 1 << 20])
@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("view", VIEWS)
def test_every_view_and_sharding_gives_the_leaf(view, stack, block_bytes):
    leaf, whole, _ = stored_leaf(view, stack)
    checked = 0
    for sharding in shardings(whole.ndim):
        if fits(whole.shape, sharding):
            array = make_leaf(leaf, F32, sharding, block_bytes)
            assert array.sharding == sharding
            np.testing.assert_array_equal(array, whole)
            checked += 1
    assert checked >= 3


@pytest.mark.parametrize("block_bytes", [512, 1 << 20])
@pytest.mark.parametrize(("source", "dtype"), [(BF16, F32), (F32, BF16), (np.dtype("float16"), F32), (BF16, BF16)])
def test_values_are_rounded_as_numpy_rounds_them(source, dtype, block_bytes):
    bits = np.random.default_rng(1).integers(0, 1 << 8 * source.itemsize, (64, 32), dtype=np.uint64)
    array = bits.astype(f"uint{8 * source.itemsize}").view(source)
    # Every exponent, subnormal numbers and infinities among them.
    array = np.where(np.isnan(array.astype(np.float32)), source.type(0), array)
    leaf = StoredLeaf.of([Recorded(array)], (), np.transpose)
    got = make_leaf(leaf, dtype, SingleDeviceSharding(jax.devices()[0]), block_bytes)
    expected = array.astype(dtype).T
    np.testing.assert_array_equal(np.asarray(got).view(np.uint8), np.ascontiguousarray(expected).view(np.uint8))


def test_shards_read_what_they_need_and_copies_share_a_reading():
    leaf, whole, tensors = stored_leaf("same", (3,), shape=(32, 16))
    # Rows over two devices, each with a copy; blocks that come out even.
    sharding = NamedSharding(mesh(data=2, fsdp=2), PartitionSpec(None, "fsdp"))
    np.testing.assert_array_equal(make_leaf(leaf, F32, sharding, block_bytes=1 << 10), whole)
    for tensor in tensors:
        covered = np.zeros(32 * 16, int)
        for begin, end in tensor.ranges:
            covered[begin:end] += 1
        np.testing.assert_array_equal(covered, 1)


def test_no_block_is_larger_than_the_limit_for_all_shards_together():
    leaf, _, tensors = stored_leaf("transposed", (2,), shape=(64, 64))
    sharding = NamedSharding(mesh(fsdp=4), PartitionSpec(None, None, "fsdp"))
    make_leaf(leaf, F32, sharding, block_bytes=1 << 12)
    assert max(end - begin for tensor in tensors for begin, end in tensor.ranges) * 4 <= 1 << 10


def test_the_leaf_is_filled_in_its_own_memory(monkeypatch):
    """A copy of the leaf for every block would show in time and memory only: the buffers must stay the same."""
    buffers, writer = set(), sharded_leaf._writer

    def recording(sharding):
        def write(array, block, start):
            before = [shard.data.unsafe_buffer_pointer() for shard in array.addressable_shards]
            out = writer(sharding)(array, block, start)
            assert [shard.data.unsafe_buffer_pointer() for shard in out.addressable_shards] == before
            buffers.update(before)
            return out

        return write

    monkeypatch.setattr(sharded_leaf, "_writer", recording)
    for dtype in (F32, BF16):
        leaf, whole, _ = stored_leaf("transposed", (3,), dtype)
        sharding = NamedSharding(mesh(fsdp=2, tensor=2), PartitionSpec(None, "fsdp", "tensor"))
        np.testing.assert_array_equal(make_leaf(leaf, dtype, sharding, 256), whole)
    assert len(buffers) >= 4


def test_a_transform_that_is_no_view_is_a_defect():
    with pytest.raises(ValueError, match="is not a view that reorders dims"):
        StoredLeaf.of([Recorded(np.zeros((4, 6), np.float32))], (), lambda t: t[:, ::-1])
