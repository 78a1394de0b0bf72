"""Accelerators by name: what a chip has, and devices to compile for where there are none (`v6e:2x4`, `h100:1x8`)."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from iterpref_jax.errors import UserError, did_you_mean

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One device, from its vendor's data sheet: bytes of HBM, dense bfloat16 FLOP/s, bytes a second to and from HBM."""

    kind: str  # what JAX's `device_kind` begins with
    hbm_bytes: int
    flops: float
    hbm_bandwidth: float
    # What XLA must know to compile for a GPU that is not there, a text proto; TPUs are described by libtpu.
    target_config: str = ""


def _gpu(kind: str, gb: int, flops: float, bandwidth: float, **compiled: Any) -> Chip:
    memory = gb * 10**9
    target = _target_config(kind, memory, bandwidth, **compiled) if compiled else ""
    return Chip(kind=kind, hbm_bytes=memory, flops=flops, hbm_bandwidth=bandwidth, target_config=target)


def _target_config(
    kind: str,
    memory: int,
    bandwidth: float,
    *,
    capability: int,
    cores: int,
    fpus: int,
    shared: int,
    l2: int,
    ghz: float,
) -> str:
    """Returns XLA's `GpuTargetConfigProto`; `shared` is shared memory a core in KiB, of which a block gets 1 less."""
    device = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 49152,
        "shared_memory_per_core": shared * 1024,
        "shared_memory_per_block_optin": (shared - 1) * 1024,
        "threads_per_core_limit": 2048,
        "core_count": cores,
        "fpus_per_core": fpus,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65535,
        "block_dim_limit_z": 65535,
        "memory_bandwidth": int(bandwidth),
        "l2_cache_size": l2 * 2**20,
        "clock_rate_ghz": ghz,
        "device_memory_size": memory,
        "registers_per_core_limit": 65536,
        "registers_per_block_limit": 65536,
    }
    fields = " ".join(f"{name}: {value}" for name, value in device.items())
    major, minor = divmod(capability, 10)
    return (
        f"gpu_device_info {{ {fields} cuda_compute_capability {{ major: {major} minor: {minor} }} }} "
        f'platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }} device_description_str: "{kind}"'
    )


_HOPPER = dict(capability=90, cores=132, fpus=128, shared=228, l2=50, ghz=1.98)
_AMPERE = dict(capability=80, cores=108, fpus=64, shared=164, l2=40, ghz=1.41)

# TPUs: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}. GPUs: NVIDIA's data sheets, the SXM form (A100: 80 GB).
CHIPS = {
    "v4": Chip(kind="TPU v4", hbm_bytes=32 * GIB, flops=275e12, hbm_bandwidth=1228e9),
    "v5e": Chip(kind="TPU v5 lite", hbm_bytes=16 * GIB, flops=197e12, hbm_bandwidth=819e9),
    "v5p": Chip(kind="TPU v5", hbm_bytes=95 * GIB, flops=459e12, hbm_bandwidth=2765e9),
    "v6e": Chip(kind="TPU v6 lite", hbm_bytes=32 * GIB, flops=918e12, hbm_bandwidth=1640e9),
    "a100": _gpu("NVIDIA A100", 80, 312e12, 2039e9, **_AMPERE),
    "h100": _gpu("NVIDIA H100", 80, 989e12, 3350e9, **_HOPPER),
    "h200": _gpu("NVIDIA H200", 141, 989e12, 4800e9, **_HOPPER),
    "b200": _gpu("NVIDIA B200", 180, 2250e12, 8000e9),
}

TPUS = ("v5e", "v5p", "v6e")
GPUS = tuple(name for name, chip in CHIPS.items() if chip.target_config)
GPU_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for. Nothing runs on them."""

    name: str
    chip: Chip
    devices: tuple[Any, ...]

    @property
    def compiler_options(self) -> dict[str, Any]:
        """What `Lowered.compile` needs: kernels are timed on a GPU to choose among them, and here there is none."""
        return {"xla_gpu_autotune_level": 0} if self.chip.target_config else {}


def chip_of(device_kind: str) -> Chip | None:
    """Returns the chip behind JAX's `device_kind`, or None where it is not known (CPU)."""
    known = [chip for chip in CHIPS.values() if device_kind.startswith(chip.kind)]
    return max(known, key=lambda chip: len(chip.kind), default=None)


def open_topology(name: str) -> Topology:
    """Returns the devices of `v6e:2x4` (chips along each axis of the torus) or `h100:1x8` (hosts x GPUs).

    Raises:
        UserError: a name that is none, chips that make no slice, or a compiler that is not installed.
    """
    chip, _, shape = name.partition(":")
    known = (*TPUS, *GPUS)
    if chip not in known:
        raise UserError(
            f"topology {name!r}: the chip must be one of {', '.join(known)}{did_you_mean(chip, known)}; "
            "write v6e:2x4 or h100:1x8"
        )
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)+", shape):
        raise UserError(
            f"topology {name!r}: write the chips along each axis behind the colon, as in v6e:2x4 or h100:1x8"
        )
    return Topology(name, CHIPS[chip], _tpus(name) if chip in TPUS else _gpus(name, CHIPS[chip], shape))


def _tpus(name: str) -> tuple[Any, ...]:
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(f"topology {name!r} needs the TPU compiler: pip install 'iterpref_jax[plan]'")
    # libtpu would look for the machine's TPU in the cloud's metadata, and refuse a second process.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    return _devices(name, platform="tpu", topology_name=name)


def _gpus(name: str, chip: Chip, shape: str) -> tuple[Any, ...]:
    if not any(importlib.util.find_spec(plugin) for plugin in GPU_PLUGINS):
        raise UserError(f"topology {name!r} needs the GPU compiler: pip install 'iterpref_jax[cuda]'")
    if shape.count("x") != 1:
        raise UserError(f"topology {name!r}: GPUs are HOSTSxGPUS, as in {name.partition(':')[0]}:1x8")
    # The leading 1 is XLA's number of slices.
    topology = f"1x{shape}"
    return _devices(name, platform="cuda", topology_name=topology, topology=topology, target_config=chip.target_config)


def _devices(name: str, **options: Any) -> tuple[Any, ...]:
    try:
        return tuple(topologies.get_topology_desc(**options).devices)
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"topology {name!r}: {error}") from error
