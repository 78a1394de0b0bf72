"""Which request takes which slot, and where its prompt's keys and values come from."""

from __future__ import annotations

import collections
import dataclasses

from iterpref_jax.decode.request import Request
from iterpref_jax.decode.stopping import Transcript


@dataclasses.dataclass
class Running:
    """A request on its way; `drawn` tokens of its completion exist, `last_token` is not in the cache yet."""

    request_id: int
    request: Request
    transcript: Transcript
    last_token: int
    drawn: int = 0

    @property
    def prefix(self) -> tuple[int, ...]:
        """The tokens to prefill: the prompt's last one is the first decoding step's, like any drawn token later."""
        return tuple(self.request.prompt[:-1])

    @property
    def position(self) -> int:
        """The column of `last_token`."""
        return len(self.request.prompt) - 1 + self.drawn


@dataclasses.dataclass
class Slot:
    """One row of the cache. Its first columns hold the keys and values of `prefix`, also after the request's end."""

    number: int
    prefix: tuple[int, ...] = ()
    running: Running | None = None


@dataclasses.dataclass
class Placed:
    """What the devices have to do before the next chunk: first all prefills, then all copies."""

    prefills: list[Slot] = dataclasses.field(default_factory=list)
    copies: list[tuple[int, Slot]] = dataclasses.field(default_factory=list)  # (number of the source, slot)


def place(slots: list[Slot], waiting: collections.deque[Running]) -> Placed:
    """Gives the free slots to the requests that wait longest; every prompt is computed once while a slot holds it."""
    free = [slot for slot in slots if slot.running is None]
    taken = [waiting.popleft() for _ in range(min(len(free), len(waiting)))]
    source = {slot.prefix: slot.number for slot in slots if slot.prefix} if taken else {}
    rest = [running for running in taken if not _take_holder(running, free)]
    # A free slot with a prefix of the rest was taken above: no source is overwritten below.
    placed = Placed()
    for running, slot in zip(rest, sorted(free, key=lambda slot: len(slot.prefix)), strict=False):
        slot.running, slot.prefix = running, running.prefix
        if slot.prefix in source:
            placed.copies.append((source[slot.prefix], slot))
        elif slot.prefix:
            source[slot.prefix] = slot.number
            placed.prefills.append(slot)
    return placed


def _take_holder(running: Running, free: list[Slot]) -> bool:
    """Puts a request in a free slot that holds its prompt already, if there is one."""
    prefix = running.prefix
    for slot in free:
        if slot.running is None and slot.prefix == prefix:
            slot.running = running
            free.remove(slot)
            return True
    return False
