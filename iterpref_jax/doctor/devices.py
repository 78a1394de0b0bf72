"""The accelerators that JAX finds, their memory, and the mesh of a config over them."""

from __future__ import annotations

import collections
import os
from pathlib import Path
from typing import Any

import jax

from iterpref_jax.doctor.finding import Finding, fail, ok, warn
from iterpref_jax.parallel.mesh import GPU_PLATFORMS, MeshSettings, make_mesh
from iterpref_jax.parallel.rules import Placement
from iterpref_jax.parallel.topology import GPU_SHARE, GPU_SHARE_IF_UNSET, chip_of

GIB = 2**30
# What a driver puts there, and the extra that brings JAX's side of it.
_DRIVERS = {"/dev/nvidia0": "cuda", "/dev/accel0": "tpu", "/dev/vfio/0": "tpu"}
# More than this in use before anything of ours is there: another process holds the device.
_IN_USE = 0.05


def check_devices() -> list[Finding]:
    """Looks at the devices of this process; opens them."""
    local = jax.local_devices()
    kinds = collections.Counter(device.device_kind for device in local)
    listed = ", ".join(f"{count} x {kind}" for kind, count in kinds.items())
    processes = f", {jax.device_count()} in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    found = [ok("devices", f"{listed} ({local[0].platform}){processes}{_memory(local[0])}")]
    return found + _unused() + _occupied(local) + _share(local[0])


def check_mesh(settings: MeshSettings) -> tuple[list[Finding], Placement | None]:
    """Lays the mesh over all devices; it raises the UserError that `train` would raise."""
    placement = Placement(make_mesh(settings))
    sizes = {axis: size for axis, size in placement.mesh.shape.items() if size > 1}
    shape = " x ".join(f"{axis} {size}" for axis, size in sizes.items()) or "one device"
    return [ok("mesh", f"{shape}; rows a microbatch: a multiple of {placement.row_shards()}")], placement


def _memory(device: Any) -> str:
    stats = device.memory_stats() or {}
    return f", {stats['bytes_limit'] / GIB:.1f} GiB each for JAX" if "bytes_limit" in stats else ""


def _unused() -> list[Finding]:
    """An accelerator that is there and that JAX does not see."""
    if jax.default_backend() != "cpu":
        return []
    extras = {extra for path, extra in _DRIVERS.items() if Path(path).exists()}
    if not extras:
        return []
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        advice = "unset JAX_PLATFORMS to use it"
        return [warn("devices", "there is an accelerator, but JAX_PLATFORMS is cpu", advice)]
    extra = extras.pop()
    advice = f"install JAX's side of it: pip install 'iterpref_jax[{extra}]'"
    return [fail("devices", "there is an accelerator, but JAX sees the CPU only", advice)]


def _occupied(local: list[Any]) -> list[Finding]:
    found = []
    for device in local:
        stats = device.memory_stats() or {}
        used, limit = stats.get("bytes_in_use", 0), stats.get("bytes_limit", 0)
        if limit and used > _IN_USE * limit:
            text = f"{device}: {used / GIB:.1f} of {limit / GIB:.1f} GiB are in use already"
            found.append(warn("devices", text, "end the other process (nvidia-smi, or lsof /dev/accel*, names it)"))
    return found


def _share(device: Any) -> list[Finding]:
    """JAX takes three quarters of a GPU unless it is told otherwise."""
    chip, stats = chip_of(device.device_kind), device.memory_stats() or {}
    if device.platform not in GPU_PLATFORMS or chip is None or "bytes_limit" not in stats:
        return []
    share = os.environ.get(GPU_SHARE, GPU_SHARE_IF_UNSET)
    # The share that was set counts as well: a chip of the same name may have half of that memory (A100).
    if max(float(share), stats["bytes_limit"] / chip.hbm_bytes) >= 0.8:
        return []
    text = f"JAX takes {stats['bytes_limit'] / GIB:.1f} of {chip.hbm_bytes / GIB:.1f} GiB of a GPU"
    advice = f"set {GPU_SHARE}=0.92 in the environment (it is {share}), if no other process needs the rest"
    return [warn("devices", text, advice)]
