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
    now, peak = _resident()
    return devices | {"process_gib": now, "process_peak_gib": peak}


def _highest(sizes: list[int]) -> float | None:
    return _gib(max(sizes)) if sizes else None


def _resident() -> tuple[float | None, float]:
    """Returns the resident memory now, where it is told without a package (on Linux), and its peak."""
    if not _STATUS.exists():
        # In KiB, but on macOS in bytes.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return None, _gib(peak)
    # Not `ru_maxrss`: that one starts from the peak of the process that forked this one.
    status = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
    now, peak = (_gib(1024 * int(status[name].split()[0])) for name in ("VmRSS", "VmHWM"))
    # The kernel's two counters are not brought up to date together.
    return now, max(now, peak)


def _gib(size: int) -> float:
    return size / (1 << 30)
