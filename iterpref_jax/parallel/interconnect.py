"""How fast devices exchange data: links inside a slice or host, the data centre's network between them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax

from iterpref_jax.parallel.topology import Topology

# How often the bytes of the whole array cross the group, and what an all-to-all on a ring needs of an all-gather:
# half the distance in half the directions.
_PASSES = {"all-reduce": 2}
_RING_ALL_TO_ALL = 0.25


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exchange:
    """One collective on one device: bytes that it sends, and seconds at the data sheets' bandwidths.

    `links` is ICI or NVLink, `network` what joins slices or hosts.
    """

    link_bytes: float
    link_seconds: float
    network_bytes: float
    network_seconds: float

    def times(self, count: float) -> Exchange:
        return Exchange(**{name: value * count for name, value in dataclasses.asdict(self).items()})


@dataclasses.dataclass(frozen=True)
class Interconnect:
    """The devices of a mesh, in its order: `exchange` says what a collective among some of them costs."""

    topology: Topology
    mesh: jax.sharding.Mesh

    @functools.cached_property
    def _places(self) -> list[int]:
        """The number in the topology of each device of the mesh."""
        numbers = {device.id: number for number, device in enumerate(self.topology.devices)}
        return [numbers[device.id] for device in self.mesh.devices.flat]

    def axes(self, group: Sequence[int]) -> tuple[str, ...]:
        """Returns the mesh axes along which a group of devices (numbers in the mesh) differs."""
        shape = self.mesh.devices.shape
        places = [_coordinates(number, shape) for number in group]
        return tuple(
            axis for axis, values in zip(self.mesh.axis_names, zip(*places, strict=True), strict=True)
            if len(set(values)) > 1
        )  # fmt: skip

    def group_along(self, axes: Sequence[str]) -> tuple[int, ...]:
        """Returns the devices that differ from the first one along these axes alone."""
        shape, names = self.mesh.devices.shape, self.mesh.axis_names
        fixed = [side for side, name in enumerate(names) if name not in axes]
        return tuple(
            number for number in range(self.mesh.devices.size)
            if not any(_coordinates(number, shape)[side] for side in fixed)
        )  # fmt: skip

    def exchange(self, kind: str, size: float, group: Sequence[int]) -> Exchange:
        """Returns the cost of one collective in a group (numbers in the mesh).

        `size` is the bytes of the whole array for gathers, scatters and reductions, of a device's part for the others.
        A group over several domains first works in each, then every device exchanges its share with its counterparts.
        Groups are taken not to share links.
        """
        domains: dict[int, list[int]] = {}
        for number in group:
            place = self._places[number]
            domains.setdefault(self.topology.domains[place], []).append(place)
        near, far = max(map(len, domains.values())), len(domains)
        chip = self.topology.chip
        if kind in ("all-to-all", "ragged-all-to-all"):
            here, away = size * (len(group) / far - 1) / len(group), size * (far - 1) / far
        elif kind == "collective-permute":
            here, away = (size, 0.0) if far == 1 else (0.0, size)
        else:
            passes = _PASSES.get(kind, 1)
            here, away = passes * size * (near - 1) / near, passes * size / near * (far - 1) / far
        ports = 1 if kind == "collective-permute" else self._ports(next(iter(domains.values())))
        slower = max(1.0, near * _RING_ALL_TO_ALL) if chip.ring and kind.endswith("all-to-all") else 1.0
        return Exchange(
            link_bytes=here,
            link_seconds=slower * here / (chip.link_bandwidth * ports),
            network_bytes=away,
            network_seconds=away / chip.network_bandwidth,
        )

    def _ports(self, places: Sequence[int]) -> int:
        """Returns how many links a device uses at once: two along a side of the torus that is a ring, else one."""
        if not self.topology.chip.ring:
            return 1
        found = [self.topology.coordinates[place] for place in places]
        lengths = [max(everywhere) + 1 for everywhere in zip(*self.topology.coordinates, strict=True)]
        closes = [length % self.topology.chip.ring == 0 for length in lengths]
        if len(lengths) == 3:
            # Optical switches close the sides of whole cubes; a slice that is less than a cube has none.
            closes = [all(closes)] * 3
        ports = 0
        for here, length, closed in zip(zip(*found, strict=True), lengths, closes, strict=True):
            is_ring = closed and len(set(here)) == length
            ports += 0 if len(set(here)) == 1 else 2 if is_ring else 1
        return max(1, ports)


def _coordinates(number: int, shape: Sequence[int]) -> tuple[int, ...]:
    found = []
    for size in reversed(shape):
        number, place = divmod(number, size)
        found.append(place)
    return tuple(reversed(found))
