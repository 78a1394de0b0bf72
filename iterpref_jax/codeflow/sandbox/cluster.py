"""Sandboxes on the nodes of a Ray cluster: programs run there, everything else stays in one process.

That process, the driver, owns the journal and the client of the endpoint. Whole shards in actors would need no code
here, but: a budget, a rate limit and a circuit breaker hold only for who keeps one account; a journal that is written
ahead must not lie on shared storage; each shard would pay for growing the feature tree, and grow another one; and a
killed actor would take answers along that were paid for. Asking a model is waiting, of which one process does as much
as all servers of `endpoint.base_urls` can use; what needs the CPUs of a cluster is running programs. A killed actor
loses runs, which cost nothing and are repeated elsewhere. Who needs more than one driver gives each a `--shard`, and
merges.

Nothing but programs and verdicts is sent, so that a run on Ray ends with the same bytes as one without.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from iterpref_jax import __version__
from iterpref_jax.codeflow.sandbox import ruling
from iterpref_jax.codeflow.sandbox.tiers import UNSAFE, SandboxSettings, open_sandbox
from iterpref_jax.codeflow.sandbox.verdict import Program, Verdict
from iterpref_jax.errors import UserError
from iterpref_jax.progress import say, warn

LOCAL = "local"
# Until the actors have started; in a busy cluster some wait for CPUs.
START_S = 120.0
# Between tries of one program whose actors died: together longer than a restart takes.
PAUSES_S = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
# An actor that was lost is asked last for so long.
REST_S = 5.0
# Objects are programs and verdicts, far smaller than Ray's own default of a third of the memory.
_OBJECT_STORE_BYTES = 128 << 20
_CANARY = Program(code="x = 1", setup="", style="script", tests="assert x == 1")


class SandboxActor:
    """A sandbox in a process of Ray's; `workers` programs run in it at a time."""

    def __init__(self, settings: SandboxSettings):
        self._opened = contextlib.ExitStack()
        self._sandbox: Any = None
        # An actor whose constructor fails is started again and again; `ready` says why instead.
        self._refused: UserError | None = None
        try:
            self._sandbox = self._opened.enter_context(open_sandbox(settings))
        except UserError as error:
            self._refused = error

    def ready(self) -> tuple[str, str, Verdict | str]:
        """Returns the node's name, the version of this package there, and a verdict, or why there is none."""
        found = str(self._refused) if self._refused else self.run(_CANARY)
        return socket.gethostname(), __version__, found

    def run(self, program: Program, **checks: bool) -> Verdict:
        """As `Sandbox.run`."""
        # Ray's workers block it, and programs would inherit that.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT,))
        if self._refused:
            raise self._refused
        return self._sandbox.run(program, **checks)


@dataclasses.dataclass(kw_only=True)
class _Remote:
    """The driver's side of an actor."""

    handle: Any
    running: int = 0
    rests_until: float = 0.0


class Cluster:
    """Judges programs as `Sandbox` does, `workers` at a time, wherever there is room. Made by `open_cluster`."""

    def __init__(self, handles: Sequence[Any], tier: str, workers: int):
        self.workers = workers
        self._remotes = [_Remote(handle=handle) for handle in handles]
        self._tier, self._choosing, self._stop = tier, threading.Lock(), threading.Event()

    def run(self, program: Program, *, check_vacuous: bool = False, check_flaky: bool = False) -> Verdict:
        """Judges one program; one whose actor dies is run again by another, or by this one after its restart.

        Returns a `sandbox_error` when no actor brought it to an end; raises what `Sandbox.run` raises. Called from any
        thread.
        """
        import ray
        import ray.exceptions

        for pause in (*PAUSES_S, 0.0):
            with self._least_busy() as remote:
                try:
                    return ray.get(
                        remote.handle.run.remote(program, check_vacuous=check_vacuous, check_flaky=check_flaky)
                    )
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from error
                except ray.exceptions.RayError as error:
                    remote.rests_until = time.monotonic() + REST_S
                    lost = _first_line(error)
            if self._stop.wait(pause):
                return ruling.sandbox_error("stopped before its end", tier=self._tier, gaps=())
        warn(f"ray: a program was given up after {len(PAUSES_S) + 1} tries: {lost}")
        return ruling.sandbox_error(f"every sandbox that ran it was lost: {lost}", tier=self._tier, gaps=())

    def stop(self) -> None:
        """Ends all runs, those to come too, as sandbox errors, and the actors with them. Called from any thread."""
        import ray

        self._stop.set()
        for remote in self._remotes:
            ray.kill(remote.handle)

    @contextlib.contextmanager
    def _least_busy(self) -> Iterator[_Remote]:
        with self._choosing:
            now = time.monotonic()
            chosen = min(self._remotes, key=lambda remote: (remote.rests_until > now, remote.running))
            chosen.running += 1
        try:
            yield chosen
        finally:
            with self._choosing:
                chosen.running -= 1


@contextlib.contextmanager
def open_cluster(settings: SandboxSettings, address: str) -> Iterator[Cluster]:
    """Opens sandboxes in a Ray cluster for a `with` block, each with `settings.workers` CPUs, as many as fit.

    `address` is Ray's ("auto", "HOST:6379"), or "local" for a cluster that is this machine and ends with the block.

    Raises:
        UserError: Ray is not installed, no cluster answers, no node has room, a node's sandbox does not hold, a node
            has another version of this package.
    """
    ray = _connected(address)
    try:
        handles, tiers = _started(ray, settings)
        cluster = Cluster(handles, tiers[0], len(handles) * settings.workers)
        if "rlimit" in tiers:
            say(UNSAFE)
        say(f"ray: {cluster.workers} programs at a time in {len(handles)} sandboxes, tier {', '.join(tiers)}")
        yield cluster
    finally:
        ray.shutdown()


def _connected(address: str) -> Any:
    # Ray would send statistics to its makers, and say so in several lines.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise UserError("--ray needs the package ray: pip install 'iterpref_jax[ray]'") from error
    own: dict[str, Any] = dict(object_store_memory=_OBJECT_STORE_BYTES, include_dashboard=False)
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own if address == LOCAL else {})
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(
            f"--ray={address}: no cluster there ({_first_line(error)}); wanted {LOCAL}, auto (the cluster of this "
            "machine, after `ray start`) or the address HOST:PORT of its head"
        ) from error
    finally:
        # Ray puts handlers of its own in its place: the one ends without a word, the other aborts.
        signal.signal(signal.SIGTERM, before)
    return ray


def _started(ray: Any, settings: SandboxSettings) -> tuple[list[Any], list[str]]:
    """Returns the actors that run, and the tiers of their sandboxes."""
    nodes = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    count = sum(int(cpus) // settings.workers for cpus in nodes)
    if not count:
        raise UserError(
            f"sandbox.workers = {settings.workers}: no node of the Ray cluster has so many CPUs (they have "
            f"{', '.join(f'{cpus:g}' for cpus in nodes)}); it is what each sandbox takes"
        )
    actors = ray.remote(SandboxActor).options(
        num_cpus=settings.workers,
        max_concurrency=settings.workers,
        scheduling_strategy="SPREAD",
        max_restarts=-1,
        # A call fails with its actor, and another actor gets it.
        max_task_retries=0,
    )
    starting = {}
    for _ in range(count):
        handle = actors.remote(settings)
        starting[handle.ready.remote()] = handle
    ready, late = ray.wait(list(starting), num_returns=count, timeout=START_S)
    for reference in late:
        ray.kill(starting[reference])
    if late:
        warn(f"ray: {len(late)} of {count} sandboxes found no CPUs within {START_S:.0f} s; going on without them")
    if not ready:
        raise UserError("--ray: no sandbox could start; others use all CPUs of the cluster (see `ray status`)")
    return [starting[reference] for reference in ready], sorted({_tier(ray, reference) for reference in ready})


def _tier(ray: Any, reference: Any) -> str:
    try:
        node, version, verdict = ray.get(reference)
    except ray.exceptions.RayError as error:
        raise UserError(
            f"--ray: a sandbox could not start: {_first_line(error)}; is iterpref_jax {__version__} installed on every "
            "node?"
        ) from error
    if version != __version__:
        raise UserError(f"--ray: node {node} has iterpref_jax {version}, this one {__version__}; install the same")
    if isinstance(verdict, str):
        raise UserError(f"--ray: node {node}: {verdict}")
    if not verdict.passed:
        raise UserError(f"--ray: node {node}: a program that is right gets {verdict.status}: {verdict.message}")
    return verdict.tier


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
