"""What the hosts of one run must have in common: versions, clocks, devices, and the run's folder."""

from __future__ import annotations

import collections
import socket
import time
from collections.abc import Mapping

import jax
from etils import epath

from iterpref_jax.doctor.finding import Finding, fail, ok, warn
from iterpref_jax.parallel import distributed
from iterpref_jax.train import alike

# Locks of remote folders and the times in logs compare clocks.
MOST_SKEW_S = 2.0
_ROUNDS = 3


def check_hosts(versions: Mapping[str, str]) -> list[Finding]:
    """Compares versions and clocks of all processes; says nothing of a process alone."""
    if distributed.process_count() == 1:
        return []
    names = distributed.gather("doctor hosts", socket.gethostname())
    counts = collections.Counter(names)
    listed = ", ".join(f"{name} ({count})" if count > 1 else name for name, count in list(counts.items())[:8])
    text = f"{len(names)} processes on {len(counts)} hosts: {listed}{', ...' if len(counts) > 8 else ''}"
    return [ok("hosts", text), *_versions(versions), *_clocks(names)]


def check_devices_alike() -> list[Finding]:
    """Compares the number and kind of devices a process."""
    if distributed.process_count() == 1:
        return []
    kinds = sorted({device.device_kind for device in jax.local_devices()})
    everybody = distributed.gather("doctor devices", f"{jax.local_device_count()} x {', '.join(kinds)}")
    return _differing("devices", everybody, "give every process the same devices")


def check_shared(folder: str) -> list[Finding]:
    """Makes sure that all hosts see one folder."""
    if distributed.process_count() == 1:
        return []
    alike.check_shared(epath.Path(folder))
    return [ok("shared", f"all processes see what the others write in {folder}")]


def _versions(versions: Mapping[str, str]) -> list[Finding]:
    found: list[Finding] = []
    everybody = distributed.gather("doctor versions", dict(versions))
    for name in dict.fromkeys(name for one in everybody for name in one):
        values = [one.get(name, "none") for one in everybody]
        found += _differing(name, values, "install the same versions on all hosts; `train` refuses to start")
    return found


def _differing(what: str, everybody: list[str], advice: str) -> list[Finding]:
    if len(set(everybody)) == 1:
        return []
    having = {value: [number for number, other in enumerate(everybody) if other == value] for value in everybody}
    listed = "; ".join(f"{value} on {_named(numbers)}" for value, numbers in having.items())
    return [fail("hosts", f"{what} differ: {listed}", advice)]


def _named(numbers: list[int]) -> str:
    more = f" and {len(numbers) - 1} more" if numbers[1:] else ""
    return distributed.described(numbers[0]) + more


def _clocks(names: list[str]) -> list[Finding]:
    """All read their clock when a barrier opens; of some rounds the one with the least spread counts."""
    rounds = []
    for number in range(_ROUNDS):
        distributed.barrier(f"doctor clocks {number}")
        rounds.append(distributed.gather(f"doctor clock {number}", time.time()))
    times = min(rounds, key=lambda times: max(times) - min(times))
    first, last = times.index(min(times)), times.index(max(times))
    skew = times[last] - times[first]
    if skew < MOST_SKEW_S:
        return [ok("clocks", f"within {max(skew, 0.01):.2f} s of each other")]
    text = f"the clock of {names[last]} (process {last}) is {skew:.1f} s ahead of {names[first]}'s (process {first})"
    return [warn("clocks", text, "let all hosts follow NTP: chronyc tracking, or timedatectl, says whether they do")]
