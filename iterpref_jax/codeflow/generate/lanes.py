"""Work that is done side by side, so many items at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

Item = TypeVar("Item")
Value = TypeVar("Value")


async def each(items: Sequence[Item], work: Callable[[Item], Awaitable[Value]], lanes: int) -> list[Value]:
    """Returns `await work(item)` of every item, in their order; the first that fails ends the others."""
    found: list[Any] = [None] * len(items)
    queue = iter(enumerate(items))

    async def lane() -> None:
        for number, item in queue:
            found[number] = await work(item)

    running = [asyncio.create_task(lane()) for _ in range(min(lanes, len(items)))]
    try:
        await asyncio.gather(*running)
    finally:
        for task in running:
            task.cancel()
        # What came for them meanwhile is still journalled.
        await asyncio.gather(*running, return_exceptions=True)
    return found
