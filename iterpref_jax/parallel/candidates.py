"""The meshes that some devices can make."""

from __future__ import annotations

from collections.abc import Iterator

from iterpref_jax.parallel.mesh import AXES, MeshSettings
from iterpref_jax.parallel.topology import Topology


def candidates(topology: Topology, *, heads: int, experts: int) -> Iterator[MeshSettings]:
    """Yields every split of the devices over the axes, whole replicas in every slice of TPUs.

    Heads and experts are split evenly or not at all; axes that exchange activations in every layer stay within a slice
    or host, and `tensor` and `sequence` take no more than eight devices each: beyond that there is nothing to gain.
    """
    devices = len(topology.devices)
    a_domain = devices // topology.slices
    for sizes in _splits(devices, len(AXES)):
        mesh = MeshSettings(**dict(zip(AXES, sizes, strict=True)))
        fast = mesh.expert * mesh.sequence * mesh.tensor
        if a_domain % fast or max(mesh.tensor, mesh.sequence) > 8:
            continue
        if topology.chip.ring and mesh.data % topology.slices:
            continue
        splits_experts = mesh.expert == 1 or (experts and experts % mesh.expert == 0)
        if heads % (mesh.tensor * mesh.sequence) == 0 and splits_experts:
            yield mesh


def _splits(number: int, parts: int) -> Iterator[tuple[int, ...]]:
    if parts == 1:
        yield (number,)
        return
    for first in (size for size in range(1, number + 1) if number % size == 0):
        yield from ((first, *rest) for rest in _splits(number // first, parts - 1))
