"""The time of a step if each part of the machine did its share at a stated part of its data sheet's speed."""

from __future__ import annotations

import dataclasses

from iterpref_jax.parallel.interconnect import Exchange
from iterpref_jax.parallel.topology import Chip
from iterpref_jax.plan.settings import Efficiency


@dataclasses.dataclass(frozen=True, kw_only=True)
class Roofline:
    """Seconds of a step that each part needs: arithmetic, memory, links in a slice or host, and the network."""

    compute: float
    memory: float
    links: float
    network: float

    @property
    def binding(self) -> str:
        """The part that needs longest."""
        terms = dataclasses.asdict(self)
        return max(terms, key=lambda name: terms[name])

    @property
    def seconds(self) -> float:
        """The step, if everything else goes on behind the part that needs longest."""
        return max(dataclasses.asdict(self).values())

    @property
    def without_overlap(self) -> float:
        """The step, if nothing is exchanged while the devices compute; memory is read while they do."""
        return max(self.compute, self.memory) + self.links + self.network


def roofline(
    chip: Chip, efficiency: Efficiency, *, flops: float, hbm_bytes: float, exchanges: list[Exchange]
) -> Roofline:
    """Returns the terms of one device: its FLOPs, the bytes to and from its memory, and its collectives."""
    return Roofline(
        compute=flops / (chip.flops * efficiency.compute),
        memory=hbm_bytes / (chip.hbm_bandwidth * efficiency.memory),
        links=sum(each.link_seconds for each in exchanges) / efficiency.links,
        network=sum(each.network_seconds for each in exchanges) / efficiency.network,
    )
