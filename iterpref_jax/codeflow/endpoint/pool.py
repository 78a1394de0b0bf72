"""Who is asked next, and when: several servers, each with a limit that adapts, a cool-down and a circuit breaker."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

from iterpref_jax.codeflow.endpoint.policy import Failure
from iterpref_jax.codeflow.endpoint.settings import EndpointSettings
from iterpref_jax.errors import UserError
from iterpref_jax.progress import say


@dataclasses.dataclass
class Replica:
    """One server. Times are the event loop's, in seconds."""

    url: str
    limit: float
    in_flight: int = 0
    not_before: float = 0.0
    lowered_at: float = 0.0
    # Failures in a row; from `break_after` on the circuit is open: one request at a time, after `not_before`.
    failures: int = 0
    failing_since: float = 0.0
    answered: bool = False
    probing: bool = False
    down_since: float | None = None
    last_error: str = ""

    def ails(self) -> int:
        """How much speaks against asking this server: 0 if the last thing that it did was to answer."""
        return max(self.failures, int(self.down_since is not None))


class _Waiting(NamedTuple):
    """One who asks for leave."""

    future: asyncio.Future[Lease]
    tokens: int
    again: bool


@dataclasses.dataclass
class Lease:
    """Leave to send one request to `replica`."""

    replica: Replica
    started: float
    tokens: int
    probe: bool


class Pool:
    """Hands out leases in the order of asking. All methods belong to one event loop."""

    def __init__(self, settings: EndpointSettings):
        self.replicas = [Replica(url, float(settings.concurrency)) for url in settings.base_urls]
        self._settings = settings
        self._waiting: collections.deque[_Waiting] = collections.deque()
        self._requests, self._tokens = Rate(settings.requests_per_minute), Rate(settings.tokens_per_minute)
        self._alarm: asyncio.TimerHandle | None = None
        self._end: UserError | None = None

    async def acquire(self, tokens: int, *, again: bool) -> Lease:
        """Waits for leave to send a request of about `tokens`; retries (`again`) go before all that is new.

        Raises UserError when no server has answered for `give_up_s`.
        """
        future = asyncio.get_running_loop().create_future()
        (self._waiting.appendleft if again else self._waiting.append)(_Waiting(future, tokens, again))
        self._dispatch()
        try:
            return await future
        except asyncio.CancelledError:
            # It may have been given out in the same turn of the loop.
            if future.done() and not future.cancelled() and future.exception() is None:
                self.release(future.result())
            raise

    def release(self, lease: Lease) -> None:
        """Ends a request, after `succeeded` or `failed` or with neither."""
        lease.replica.in_flight -= 1
        if lease.probe:
            lease.replica.probing = False
        self._dispatch()

    def alive(self, lease: Lease) -> None:
        """The server has begun to answer."""
        lease.replica.down_since = None

    def succeeded(self, lease: Lease, tokens: int) -> None:
        """The request was answered; it took `tokens`."""
        replica = lease.replica
        if replica.failures >= self._settings.break_after:
            say(f"endpoint: {replica.url} answers again")
        replica.failures, replica.down_since = 0, None
        replica.limit = min(self._settings.concurrency, replica.limit + 1 / replica.limit)
        replica.answered = True
        self._tokens.correct(tokens - lease.tokens)

    def failed(self, lease: Lease, failure: Failure, pause: Callable[[int], float]) -> bool:
        """The request failed; `pause(n)` gives the seconds before a server is tried for the n-th time again.

        Returns whether the server was well: the last thing that it did was to answer another request.
        """
        replica, now = lease.replica, _now()
        well = replica.answered and not replica.failures
        replica.last_error = failure.message
        # Of the requests that ran together, one lowers the limit.
        if failure.overload and lease.started >= replica.lowered_at:
            replica.limit, replica.lowered_at = max(1.0, replica.limit / 2), now
        if failure.retry_after is not None:
            self._cool_down(replica, failure.retry_after)
        if failure.reason == "rate_limit":
            replica.down_since = replica.down_since or now
            return False
        replica.failures += 1
        beyond = replica.failures - self._settings.break_after
        if beyond == 0:
            replica.failing_since = now
            say(f"endpoint: {replica.url} fails ({failure.message}); it is tried again now and then")
        if beyond >= 0:
            replica.not_before = max(replica.not_before, now + pause(beyond))
            # Who begins to answer and breaks off, every time, is down all the while.
            replica.down_since = replica.down_since or replica.failing_since
        return well

    def _cool_down(self, replica: Replica, seconds: float) -> None:
        replica.not_before = max(replica.not_before, _now() + seconds)
        if seconds > self._settings.give_up_s:
            replica.last_error += f"; it asks to be left alone for {seconds:.0f} s"
            self._end = self._given_up([replica], "is busy")

    def _dispatch(self) -> None:
        """Gives leases to those who wait, as far as limits allow, and comes back when the next may be given."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        now = _now()
        self._look_for_the_end(now)
        while self._waiting:
            future, tokens, again = self._waiting[0]
            if future.done():
                self._waiting.popleft()
            elif self._end is not None:
                self._waiting.popleft()
                future.set_exception(self._end)
            elif (replica := self._free(now, again)) is None or max(self._requests.free_at, self._tokens.free_at) > now:
                self._set_alarm(now)
                return
            else:
                self._waiting.popleft()
                future.set_result(self._lease(replica, now, tokens))

    def _lease(self, replica: Replica, now: float, tokens: int) -> Lease:
        probe = replica.failures >= self._settings.break_after
        replica.probing = replica.probing or probe
        replica.in_flight += 1
        self._requests.take(1, now)
        self._tokens.take(tokens, now)
        return Lease(replica, now, tokens, probe)

    def _free(self, now: float, again: bool) -> Replica | None:
        if sum(replica.in_flight for replica in self.replicas) >= self._settings.concurrency:
            return None
        free = [replica for replica in self.replicas if self._takes_more(replica, now)]
        # What is new finds out who is well again. What has failed is asked elsewhere: a last ask would else come back
        # to the same broken server for ever, for one that is idle has no less to do.
        return min(free, key=lambda replica: (again and replica.ails(), replica.in_flight), default=None)

    def _takes_more(self, replica: Replica, now: float) -> bool:
        if now < replica.not_before or replica.in_flight >= int(replica.limit):
            return False
        return replica.failures < self._settings.break_after or not replica.probing

    def _set_alarm(self, now: float) -> None:
        times = [replica.not_before for replica in self.replicas]
        times += [self._requests.free_at, self._tokens.free_at, self._end_at()]
        coming = [time for time in times if time > now]
        # What else may free a server is a release, which dispatches by itself.
        if coming and min(coming) < float("inf"):
            self._alarm = asyncio.get_running_loop().call_at(min(coming), self._dispatch)

    def _end_at(self) -> float:
        since = [replica.down_since for replica in self.replicas]
        return max((float("inf") if time is None else time) for time in since) + self._settings.give_up_s

    def _look_for_the_end(self, now: float) -> None:
        if self._end is None and now >= self._end_at():
            self._end = self._given_up(self.replicas, f"has not answered for {self._settings.give_up_s:g} s")

    def _given_up(self, replicas: Sequence[Replica], why: str) -> UserError:
        which = "; ".join(f"{replica.url} ({replica.last_error})" for replica in replicas)
        return UserError(
            f"endpoint.base_urls: the endpoint {why}: {which}; all answers so far are in the journal: start the same "
            "command again when it is back"
        )


class Rate:
    """Spaces units evenly, so that no minute holds more than `per_minute` of them; 0 = any number."""

    def __init__(self, per_minute: int):
        self._seconds = 60 / per_minute if per_minute else 0.0
        self.free_at = 0.0

    def take(self, units: int, now: float) -> None:
        self.free_at = max(self.free_at, now) + units * self._seconds

    def correct(self, units: int) -> None:
        """Gives units back (negative) or takes more, when it is known what a request took."""
        self.free_at += units * self._seconds


def _now() -> float:
    return asyncio.get_running_loop().time()
