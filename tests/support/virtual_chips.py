"""Virtual devices with round figures for plans: a gigabyte, and one byte or operation a second."""

import jax

from iterpref_jax.parallel.topology import Chip, Topology, one_domain

VIRTUAL = Chip(
    kind="cpu",
    hbm_bytes=2**30,
    usable_bytes=2**30,
    flops=1.0,
    hbm_bandwidth=1.0,
    link_bandwidth=1.0,
    network_bandwidth=0.1,
    ring=0,
)


def virtual_topology() -> Topology:
    """Returns the eight virtual CPU devices of the tests."""
    return one_domain("8 virtual CPUs", VIRTUAL, jax.devices())


def torus(*sides: int, ring: int = 4) -> Topology:
    """Returns virtual devices that lie in a torus of these sides."""
    places: list[tuple[int, ...]] = [()]
    for side in sides:
        places = [(*place, at) for at in range(side) for place in places]
    devices = tuple(jax.devices()[: len(places)])
    chip = Chip(**{**vars(VIRTUAL), "ring": ring})
    return Topology("torus", chip, devices, (0,) * len(devices), tuple(places))
