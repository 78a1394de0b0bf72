"""What collectives cost: bytes by hand, links of a torus and of hosts."""

import dataclasses

import jax
import numpy as np
import pytest

from iterpref_jax.parallel.interconnect import Interconnect
from iterpref_jax.parallel.mesh import AXES
from tests.support.virtual_chips import torus, virtual_topology


def mesh_of(topology, **sizes):
    shape = [sizes.get(axis, 1) for axis in AXES]
    return jax.sharding.Mesh(np.array(topology.devices, object).reshape(shape), AXES)


def network(topology, **sizes):
    return Interconnect(topology, mesh_of(topology, **sizes))


@pytest.mark.parametrize(
    ("kind", "sent"), [("all-gather", 700), ("reduce-scatter", 700), ("all-reduce", 1400), ("all-to-all", 700)]
)
def test_a_device_sends_all_but_its_own_share(kind, sent):
    cost = network(virtual_topology(), fsdp=8).exchange(kind, 800, range(8))
    # Links of one byte a second.
    assert (cost.link_bytes, cost.link_seconds, cost.network_bytes) == (sent, sent, 0)


def test_groups_are_named_by_the_axes_that_they_span():
    wires = network(virtual_topology(), fsdp=4, tensor=2)
    assert wires.axes((0, 1)) == ("tensor",)
    assert wires.axes((0, 2, 4, 6)) == ("fsdp",)
    assert wires.axes(range(8)) == ("fsdp", "tensor")
    assert wires.group_along(("fsdp",)) == (0, 2, 4, 6)


def test_between_slices_every_device_exchanges_its_share_of_the_whole_with_its_counterparts():
    two = dataclasses.replace(virtual_topology(), domains=(0,) * 4 + (1,) * 4)
    cost = network(two, data=2, fsdp=4).exchange("all-reduce", 800, range(8))
    # In a slice of four: 2 x 3/4 of 800; across: a quarter each, of which half belongs to the other side, twice.
    assert (cost.link_bytes, cost.network_bytes) == (1200, 200)
    # The network has a tenth of a byte a second.
    assert cost.network_seconds == pytest.approx(2000)


def test_a_ring_of_the_torus_has_two_links_and_a_line_one():
    ring = network(torus(4, ring=4), fsdp=4).exchange("all-gather", 400, range(4))
    line = network(torus(4, ring=16), fsdp=4).exchange("all-gather", 400, range(4))
    assert (ring.link_seconds, line.link_seconds) == (150, 300)


def test_three_sides_close_to_rings_together():
    cube = network(torus(2, 2, 2, ring=2), fsdp=4, tensor=2).exchange("all-gather", 400, range(2))
    less = network(torus(4, 2, 1, ring=4), fsdp=2, tensor=4).exchange("all-gather", 400, range(4))
    assert (cube.link_seconds, less.link_seconds) == (100, 300)


def test_a_part_of_a_ring_is_a_line():
    wires = network(torus(4, 2, ring=4), fsdp=4, tensor=2)
    # Devices 0 and 1 are neighbours on the ring of four.
    assert wires.exchange("all-gather", 200, (0, 1)).link_seconds == 100
    # Both sides at once: two links along the ring, one along the side of two.
    assert wires.exchange("all-gather", 800, range(8)).link_seconds == pytest.approx(700 / 3)


def test_a_permutation_between_slices_crosses_the_network_whole():
    two = dataclasses.replace(virtual_topology(), domains=(0,) * 4 + (1,) * 4)
    assert network(two, data=2, fsdp=4).exchange("collective-permute", 10, (0, 4)).network_bytes == 10
