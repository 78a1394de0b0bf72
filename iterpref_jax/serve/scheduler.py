"""One thread owns the sampler: requests reach it through a queue, pieces come back to the event loop.

event loop ── Job ──> orders ──> thread: submit, step, cancel ──> pieces ──> the job's own asyncio queue
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import queue
import threading
from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

from iterpref_jax.decode.request import Piece, Request
from iterpref_jax.errors import UserError
from iterpref_jax.serve import faults
from iterpref_jax.serve.faults import ApiError

logger = logging.getLogger(__name__)


class Sampler(Protocol):
    """What the scheduler needs of `decode.sampler.Sampler`; no method is called outside the scheduler's thread."""

    @property
    def busy(self) -> bool: ...

    def submit(self, request: Request) -> Any: ...

    def cancel(self, request_id: Any) -> None: ...

    def step(self) -> Sequence[Piece]: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """How many completions may wait beside those that run, and how long running ones may go on at the end."""

    max_waiting: int
    grace_s: int

    def __post_init__(self):
        if self.max_waiting < 0 or self.grace_s < 0:
            raise UserError(
                f"serve.max_waiting and serve.grace_s must be at least 0, got {self.max_waiting} and {self.grace_s}"
            )


class Job:
    """The completions of one HTTP request, seen from its event loop; made by `Scheduler.running`."""

    def __init__(self, requests: Sequence[Request]):
        self.requests = requests
        self._loop = asyncio.get_running_loop()
        self._arrived: asyncio.Queue[tuple[int, Piece] | Exception | None] = asyncio.Queue()

    async def accepted(self) -> None:
        """Waits until the sampler has taken all completions; raises what it refused one with."""
        item = await self._arrived.get()
        if isinstance(item, Exception):
            raise item

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """Yields (number of the completion, piece) as they come, until every completion has ended."""
        running = len(self.requests)
        while running:
            item = await self._arrived.get()
            if isinstance(item, Exception):
                raise item
            assert item is not None
            running -= item[1].finish_reason is not None
            yield item

    def deliver(self, item: tuple[int, Piece] | Exception | None) -> None:
        """Hands one item over; the scheduler's thread calls it."""
        # A server that fails closes the loop while a step may be running: nobody waits for its pieces then.
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._arrived.put_nowait, item)


@dataclasses.dataclass(frozen=True)
class _Start:
    job: Job


@dataclasses.dataclass(frozen=True)
class _Cancel:
    job: Job


_Order = _Start | _Cancel | None  # None ends the thread


class Scheduler:
    """Runs jobs on a sampler of `slots` slots, at most `slots + max_waiting` completions at a time."""

    def __init__(self, sampler: Sampler, *, slots: int, max_waiting: int):
        self.limit = slots + max_waiting
        self.open = 0  # completions that run or wait; only the event loop touches it
        self.failed = False
        self._sampler = sampler
        self._orders: queue.SimpleQueue[_Order] = queue.SimpleQueue()
        self._live: dict[Any, tuple[Job, int]] = {}  # by the sampler's id; only the thread touches it
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Ends the thread after the step that it is in, and waits for it; what still runs is dropped."""
        self._orders.put(None)
        if self._thread.is_alive():
            self._thread.join()

    @contextlib.asynccontextmanager
    async def running(self, requests: Sequence[Request]) -> AsyncIterator[Job]:
        """Yields a job that the sampler has accepted; leaving the block cancels whatever of it still runs.

        Raises:
            UserError: the sampler refuses a request.
            ApiError: too many completions run or wait (429), or the sampler has failed (500).
        """
        if len(requests) > self.limit:
            message = f"{len(requests)} completions in one request; this server takes at most {self.limit} at a time"
            raise ApiError(message, param="n", code="invalid_value")
        if self.open + len(requests) > self.limit:
            raise faults.overloaded(self.open, len(requests), self.limit)
        job = Job(requests)
        self.open += len(requests)
        self._orders.put(_Start(job))
        try:
            await job.accepted()
            yield job
        finally:
            self.open -= len(requests)
            self._orders.put(_Cancel(job))

    def _run(self) -> None:
        try:
            while (order := self._next_order()) is not None:
                self._obey(order)
        except Exception:
            # Not raised again: nobody joins this thread before the end, and the log has it now.
            logger.exception("the sampler failed; every request gets a 500 from now on")
            self._refuse_everything()

    def _next_order(self) -> _Order:
        """Steps the sampler until an order comes; waits for one while there is nothing to do."""
        while self._sampler.busy and self._orders.empty():
            for piece in self._sampler.step():
                self._hand_over(piece)
        return self._orders.get()

    def _obey(self, order: _Start | _Cancel) -> None:
        if isinstance(order, _Cancel):
            self._drop(order.job)
            return
        try:
            for number, request in enumerate(order.job.requests):
                self._live[self._sampler.submit(request)] = order.job, number
        except UserError as error:
            self._drop(order.job)
            order.job.deliver(error)
        except Exception:
            # It may not be among the live ones yet, which `_refuse_everything` tells.
            order.job.deliver(faults.internal())
            raise
        else:
            order.job.deliver(None)

    def _drop(self, job: Job) -> None:
        for request_id in [request_id for request_id, (owner, _) in self._live.items() if owner is job]:
            self._sampler.cancel(request_id)
            del self._live[request_id]

    def _hand_over(self, piece: Piece) -> None:
        job, number = self._live[piece.request_id]
        if piece.finish_reason is not None:
            del self._live[piece.request_id]
        job.deliver((number, piece))

    def _refuse_everything(self) -> None:
        self.failed = True
        for job in {id(job): job for job, _ in self._live.values()}.values():
            job.deliver(faults.internal())
        self._live.clear()
        while (order := self._orders.get()) is not None:
            if isinstance(order, _Start):
                order.job.deliver(faults.internal())
