"""Checksums: the same wherever an array lies, another one for other bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from iterpref_jax.train.checksums import _sums, checksums, named

DTYPES = ("float32", "bfloat16", "int32", "int8", "uint8")
MASK = 0xFFFFFFFF


def mixed(x):
    x = (x ^ (x >> 16)) * 0x85EBCA6B & MASK
    x = (x ^ (x >> 13)) * 0xC2B2AE35 & MASK
    return x ^ (x >> 16)


def by_hand(array):
    """The definition, in Python's integers."""
    flat = np.ascontiguousarray(array).reshape(-1)
    bits = flat.view(f"uint{8 * flat.itemsize}")
    return sum(mixed(int(value) ^ mixed(place)) for place, value in enumerate(bits)) & MASK


def values(dtype):
    return (jax.random.normal(jax.random.key(0), (8, 4, 6)) * 50).astype(dtype)


def placed(array, spec, memory=None):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    return jax.device_put(array, sharding.with_memory_kind(memory) if memory else sharding)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_checksum_is_what_the_definition_says_on_every_mesh_and_in_the_hosts_memory(dtype):
    x = values(dtype)
    places = {
        "alone": x,
        "rows": placed(x, ("x",)),
        "both": placed(x, (("x", "y"),)),
        "crossed": placed(x, ("y", "x")),
        "copies": placed(x, ()),
        "layers/host": placed(x, (None, "x"), "pinned_host"),
        "host": placed(x, ("x",), "pinned_host"),
    }
    assert set(checksums(places).values()) == {by_hand(np.asarray(x))}


def test_only_layers_of_the_hosts_memory_are_read_one_by_one():
    """A table in a vocabulary of 152,064 rows would be as many transfers."""
    x = placed(values("float32"), (), "pinned_host")
    loops = {
        name: _sums.lower({name: x}).as_text().count("stablehlo.while") for name in ("mu/embedding", "mu/layers/up")
    }
    assert loops == {"mu/embedding": 0, "mu/layers/up": 1}


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_single_changed_bit_changes_the_checksum(dtype):
    bits = np.asarray(values(dtype)).reshape(-1)[:12].copy()
    changed = {}
    for bit in range(bits.nbytes * 8):
        copy = bits.copy()
        copy.view(np.uint8)[bit // 8] ^= 1 << bit % 8
        changed[str(bit)] = jnp.asarray(copy)
    assert by_hand(bits) not in checksums(changed).values()


def test_swapped_elements_and_the_sign_of_zero_change_the_checksum():
    x = jnp.asarray([0.0, 1.0, 2.0, 3.0])
    sums = checksums({"x": x, "swapped": x[jnp.array([0, 2, 1, 3])], "signed": x.at[0].set(-0.0), "rolled": x[::-1]})
    assert len(set(sums.values())) == 4


def test_scalars_have_checksums():
    assert checksums({"step": jnp.int32(7)}) == {"step": by_hand(np.asarray([7], np.int32))}


def test_a_dtype_without_a_checksum_is_refused():
    with pytest.raises(TypeError, match="bool has no checksum"):
        checksums({"x": jnp.ones(3, bool)})


def test_names_of_fields_keys_and_places_are_joined_by_slashes():
    from iterpref_jax.train.step import TrainState

    state = TrainState(1, {"layers": {"q_proj": 2}}, (3, {"a": 4}), {})
    assert named(state) == {"step": 1, "params/layers/q_proj": 2, "opt_state/0": 3, "opt_state/1/a": 4}
