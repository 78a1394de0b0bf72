"""Several processes as one program: started on any cluster, and short agreements through the coordinator.

Everything here goes through JAX's coordination service, not through the devices: it works before there is a mesh, and
costs a step nothing. This file alone knows JAX's private names for it. With one process every call answers at once.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import re
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any

import jax
from jax._src import clusters
from jax._src import distributed as runtime

from iterpref_jax.errors import UserError
from iterpref_jax.parallel.host_settings import DistributedSettings, HostsSettings
from iterpref_jax.parallel.rendezvous import meet

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
# How long one process may be later than another one while both are alive: reading weights takes as long as it takes.
AGREEMENT_S = 3600
_PREFIX = "iterpref/"


@dataclasses.dataclass(frozen=True)
class _Place:
    """A process among the others."""

    coordinator: str
    processes: int
    process: int
    # None: all devices of the host.
    devices: list[int] | None


_hosts: HostsSettings | None = None
_names: list[str] = []
_rounds: collections.Counter[str] = collections.Counter()


def start(settings: DistributedSettings) -> None:
    """Joins the other processes, before any device is touched; does nothing where there is one process.

    Raises:
        UserError: an incomplete description, or processes that did not come in time (they are named).
    """
    global _hosts, _names
    place = _place(settings)
    if place is None or place.processes == 1:
        return
    _hosts = settings.hosts
    # A coordinator that is bound elsewhere (JAX_COORDINATOR_BIND_ADDRESS) can be reached only once it runs.
    if "JAX_COORDINATOR_BIND_ADDRESS" not in os.environ:
        meet(place.coordinator, place.processes, place.process, settings.hosts.start_timeout_s)
    # Ours take SIGTERM (train/signals.py); a vanished process is announced by parallel/liveness.py, with what to do,
    # where JAX's own answer is to abort.
    jax.config.update("jax_enable_preemption_service", False)
    jax.config.update("jax_enable_recoverability", True)
    try:
        jax.distributed.initialize(
            place.coordinator,
            place.processes,
            place.process,
            place.devices,
            cluster_detection_method="deactivate",
            initialization_timeout=settings.hosts.start_timeout_s,
            heartbeat_timeout_seconds=settings.hosts.vanished_after_s,
            shutdown_timeout_seconds=settings.hosts.vanished_after_s,
        )
    except RuntimeError as error:
        raise UserError(
            f"process {place.process} of {place.processes} could not join at {place.coordinator} within "
            f"{settings.hosts.start_timeout_s} s ({_first_line(error)}); see that process 0 runs there, that this port "
            "is free and open between the hosts, and that no proxy variable is set; or raise hosts.start_timeout_s"
        ) from error
    _names = ["an unknown host"] * place.processes
    _names = gather("start", socket.gethostname(), timeout_s=settings.hosts.start_timeout_s)


def stop() -> None:
    """Leaves the other processes; the coordinator goes last, because losing it is fatal to the others."""
    if is_main():
        # In a thread, because the question waits for an answer of all that are alive.
        leaving = threading.Thread(target=_see_off, daemon=True)
        leaving.start()
        leaving.join(vanished_after_s())
    jax.distributed.shutdown()


def _see_off() -> None:
    while alive(list(range(process_count()))) != [0]:
        time.sleep(0.05)


def process_index() -> int:
    """Returns the number of this process; touches no device."""
    return runtime.global_state.process_id if runtime.global_state.client is not None else 0


def process_count() -> int:
    """Returns the number of processes; touches no device."""
    return runtime.global_state.num_processes if runtime.global_state.client is not None else 1


def is_main() -> bool:
    """Whether this is process 0, which alone writes metrics and talks to people."""
    return process_index() == 0


def vanished_after_s() -> int:
    """Returns after how many seconds without a sign of life a process counts as vanished."""
    assert _hosts is not None
    return _hosts.vanished_after_s


def barrier(name: str) -> None:
    """Waits until every process has come here; see `gather` for the errors."""
    gather(name, None)


def gather(name: str, value: Any, *, timeout_s: int = AGREEMENT_S) -> list[Any]:
    """Returns the `value` (JSON) of every process, by their number; all of them call this in the same order.

    Raises:
        UserError: the processes that did not come in time.
    """
    if process_count() == 1:
        return [value]
    turn = _rounds[name]
    folder = f"{name}.{turn}/"
    _rounds[name] += 1
    post(f"{folder}{process_index()}", json.dumps(value))
    try:
        _client().wait_at_barrier(f"{_PREFIX}{folder}", 1000 * timeout_s)
    except jax.errors.JaxRuntimeError as error:
        missing = sorted(set(range(process_count())) - {int(key) for key in look_all(folder)})
        if not missing:
            raise
        raise UserError(
            f"{' and '.join(map(described, missing))} did not come to {name!r} within {timeout_s} s; look "
            "at what they printed"
        ) from error
    if is_main() and turn:
        # Whoever came here has read the turn before.
        _client().key_value_delete(f"{_PREFIX}{name}.{turn - 1}/")
    found = look_all(folder)
    return [json.loads(found[str(number)]) for number in range(process_count())]


def from_main(name: str, value: Any) -> Any:
    """Returns the `value` (JSON) of process 0; all processes call this in the same order."""
    return gather(name, value if is_main() else None)[0]


def post(key: str, text: str) -> None:
    """Puts a text where all processes see it; a second one replaces it."""
    _client().key_value_set(_PREFIX + key, text, allow_overwrite=True)


def offer(key: str, text: str) -> None:
    """Puts a text where all processes see it, unless there is one."""
    try:
        _client().key_value_set(_PREFIX + key, text, allow_overwrite=False)
    except jax.errors.JaxRuntimeError as error:
        if "ALREADY_EXISTS" not in str(error):
            raise


def look(key: str) -> str | None:
    """Returns what was posted under a key, or None; does not wait."""
    try:
        return _client().key_value_try_get(_PREFIX + key)
    except jax.errors.JaxRuntimeError as error:
        if "NOT_FOUND" not in str(error):
            raise
        return None


def wait_for(key: str, *, seconds: int) -> str | None:
    """Returns what is posted under a key, as soon as it is; None after so many seconds without."""
    try:
        return _client().blocking_key_value_get(_PREFIX + key, 1000 * seconds)
    except jax.errors.JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" not in str(error):
            raise
        return None


def alive(processes: list[int]) -> list[int]:
    """Returns those of the processes that are alive; waits until all that are have asked."""
    return list(_client().get_live_nodes(processes))


def reaches_coordinator() -> bool:
    """Whether something listens where the coordinator should."""
    host, _, port = str(runtime.global_state.coordinator_address).rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError:
        return False
    return True


def look_all(folder: str) -> Mapping[str, str]:
    """Returns what was posted under all keys of a `folder/`, by their last part; does not wait."""
    return {key.rpartition("/")[2]: text for key, text in _client().key_value_dir_get(_PREFIX + folder)}


def described(process: int) -> str:
    """Returns `process 1 of 4 on host name`; asks nobody, so that it works when the coordinator has gone."""
    return f"process {process} of {process_count()} on {_names[process]}"


def _client() -> Any:
    assert runtime.global_state.client is not None, "call start() first"
    return runtime.global_state.client


def _place(settings: DistributedSettings) -> _Place | None:
    """Returns the flags' description, or the environment's, or the cluster's; None for a process alone."""
    if settings.processes == 1:
        return None
    if settings.coordinator is not None:
        assert settings.processes is not None
        assert settings.process is not None
        return _Place(settings.coordinator, settings.processes, settings.process, _devices())
    given = [name for name in (ADDRESS, COUNT, INDEX) if os.environ.get(name)]
    if COUNT in given and len(given) < 3:
        missing = sorted({ADDRESS, COUNT, INDEX} - set(given))
        raise UserError(f"the environment has {' and '.join(given)}, but not {' and '.join(missing)}")
    if len(given) == 3:
        place = _Place(os.environ[ADDRESS], _number(COUNT), _number(INDEX), _devices())
        try:  # the same rules as for flags
            DistributedSettings(
                coordinator=place.coordinator, processes=place.processes, process=place.process, hosts=settings.hosts
            )
        except UserError as error:
            raise UserError(f"{', '.join(given)} of the environment are the flags' values: {error}") from error
        return place
    return None if _outside_a_job() else _detected(settings.hosts.start_timeout_s)


def _outside_a_job() -> bool:
    """Whether this is a Kubernetes pod that is not one of several: JAX's detection would fail on it."""
    in_pod = "KUBERNETES_SERVICE_HOST" in os.environ and "TPU_WORKER_HOSTNAMES" not in os.environ
    return in_pod and "JOB_COMPLETION_INDEX" not in os.environ


def _detected(timeout_s: int) -> _Place | None:
    try:
        coordinator, processes, process, devices = clusters.ClusterEnv.auto_detect_unset_distributed_params(
            os.environ.get(ADDRESS), None, None, _devices(), None, timeout_s
        )
    except (RuntimeError, ValueError, KeyError) as error:
        raise UserError(
            f"this looks like a cluster, but its processes cannot be found ({_first_line(error)}); say --coordinator, "
            "--processes and --process, or --processes=1 to run alone"
        ) from error
    if coordinator is None or processes is None or process is None:
        return None
    # JAX gives a Slurm or Open MPI process one device; the only one on its host may have them all.
    return _Place(coordinator, processes, process, _devices() if _has_host_alone() else list(devices or ()) or None)


def _has_host_alone() -> bool:
    tasks = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "")
    return bool(re.fullmatch(r"1(\(x\d+\))?", tasks)) or os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1"


def _devices() -> list[int] | None:
    """JAX's own variable, which it would read only with its own detection."""
    text = os.environ.get("JAX_LOCAL_DEVICE_IDS")
    if text and not re.fullmatch(r"\d+(,\d+)*", text):
        raise UserError(f"JAX_LOCAL_DEVICE_IDS={text!r}: expected numbers of devices, such as 0,1")
    return [int(number) for number in text.split(",")] if text else None


def _number(name: str) -> int:
    try:
        return int(os.environ[name])
    except ValueError as error:
        raise UserError(f"{name}={os.environ[name]!r} is no whole number") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]
