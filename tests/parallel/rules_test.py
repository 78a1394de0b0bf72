"""Dims to mesh axes: what splits what, and what happens where sizes do not divide."""

import pytest
from jax.sharding import PartitionSpec

from iterpref_jax.errors import UserError
from tests.support.meshes import placed

EIGHT = dict(fsdp=2, expert=2, sequence=2)


def spec(sizes, dims, shape):
    return placed(**sizes).sharding(dims, shape).spec


def test_weights_are_split_over_everything_that_would_only_copy_them():
    assert spec(EIGHT, ("layer", "embed", "mlp"), (3, 16, 6)) == PartitionSpec(
        None, ("fsdp", "expert", "sequence"), None
    )


def test_an_axis_goes_to_the_dim_that_has_no_other():
    kernel = spec(EIGHT, ("expert", "embed", "mlp"), (4, 16, 6))
    assert kernel == PartitionSpec("expert", ("fsdp", "sequence"), None)
    assert spec(EIGHT, ("embed", "expert"), (16, 4)) == PartitionSpec(("fsdp", "sequence"), "expert")


def test_a_dim_is_split_as_far_as_its_axes_divide_it():
    assert spec(EIGHT, ("embed",), (12,)) == PartitionSpec(("fsdp", "expert"))
    assert spec(EIGHT, ("embed",), (6,)) == PartitionSpec("fsdp")
    assert spec(EIGHT, ("embed",), (5,)) == PartitionSpec(None)
    assert spec(dict(tensor=4), ("kv_heads", "head_dim"), (2, 8)) == PartitionSpec(None, None)


def test_activations_are_split_by_rows_and_tokens():
    assert spec(EIGHT, ("row", "token_share", "activation_embed"), (4, 6, 16)) == PartitionSpec(
        ("fsdp", "expert"), "sequence", None
    )


def test_rows_that_do_not_divide_are_refused_with_the_multiple():
    with pytest.raises(UserError, match=r"rows_per_microbatch is 6, but the mesh splits rows 4 ways.* multiple of 4"):
        spec(EIGHT, ("row", "token"), (6, 10))


def test_an_axis_of_one_device_splits_nothing():
    placement = placed(fsdp=2)
    assert placement.axes("head_share", 8) == ()
    assert placement.shards("embed", 16) == placement.row_shards() == 2
    assert placement.parts("token_share") == 1
