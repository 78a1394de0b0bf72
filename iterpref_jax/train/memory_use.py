"""Memory that is in use: of this process's devices, and of the process itself, GiB."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import jax

_STATUS = Path("/proc/self/status")


def memory_use() -> dict[str, float | None]:
    """Returns the fullest device's memory in use, its peak and limit (None where the platform does not tell, as on
    CPUs), and the resident memory of this process, its peak included.
    """
    told = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    names = {
        "device_gib": "bytes_in_use",
        "device_peak_gib": "peak_bytes_in_use",
        "device_limit_gib": "bytes_limit",
    }
    devices = {name: _highest([stats[key] for stats in told if key in stats]) for name, key in names.items()}
    now = _resident()
    # The kernel's two counters are not brought up to date together.
    return devices | {"process_gib": now, "process_peak_gib": max(_peak(), now or 0.0)}


def _highest(sizes: list[int]) -> float | None:
    return _gib(max(sizes)) if sizes else None


def _resident() -> float | None:
    # Only Linux tells it without a package.
    return _told("VmRSS") if _STATUS.exists() else None


def _peak() -> float:
    # `ru_maxrss` starts from the peak of the process that forked this one.
    if _STATUS.exists():
        return _told("VmHWM")
    # In KiB, but on macOS in bytes.
    return _gib(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))


def _told(name: str) -> float:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return _gib(1024 * int(line.split()[1]))


def _gib(size: int) -> float:
    return size / (1 << 30)
