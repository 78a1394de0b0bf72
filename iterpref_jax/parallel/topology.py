"""Accelerators by name: what a chip has, and devices to compile for where there are none (`v6e:2x4`, `h100:1x8`)."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

from iterpref_jax.errors import UserError, did_you_mean

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One device, from its vendor's data sheet: bytes of HBM, dense bfloat16 FLOP/s, bytes a second to and from HBM.

    `link_bandwidth` is one way: of each of a TPU's ICI links, or of all of a GPU's NVLinks together (a switch lets any
    two GPUs of a host use all of it). `network_bandwidth` is a chip's share of its host's network cards, one way.
    """

    kind: str  # what JAX's `device_kind` begins with
    hbm_bytes: int
    flops: float
    hbm_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float
    # What a program may take of the memory: of a TPU what its compiler says, of a GPU what JAX reserves of all.
    usable_bytes: int
    # Links along a side of the torus close to a ring where it has a multiple of so many chips, those along one of three
    # sides where all have; 0: no torus.
    ring: int
    # What XLA must know to compile for a GPU that is not there, a text proto; TPUs are described by libtpu.
    target_config: str = ""


def _gpu(kind: str, gb: int, flops: float, bandwidth: float, nvlink: float, network: float, **compiled: Any) -> Chip:
    memory = gb * 10**9
    return Chip(
        kind=kind,
        hbm_bytes=memory,
        usable_bytes=memory,
        flops=flops,
        hbm_bandwidth=bandwidth,
        link_bandwidth=nvlink,
        network_bandwidth=network,
        ring=0,
        target_config=_target_config(kind, memory, bandwidth, **compiled),
    )


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


_AMPERE = dict(capability=80, cores=108, fpus=64, shared=164, l2=40, ghz=1.41)
_HOPPER = dict(capability=90, cores=132, fpus=128, shared=228, l2=50, ghz=1.98)
_HOPPER_PCIE = _HOPPER | dict(cores=114, ghz=1.755)
_HOPPER_NVL = _HOPPER | dict(ghz=1.785)
_BLACKWELL = dict(capability=100, cores=148, fpus=128, shared=228, l2=126, ghz=1.97)

# TPUs: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}; ICI is the chip's bandwidth there, one way, over its ports (v5e 1600
# Gbit/s over 4, v6e 3200 over 4, v4 2400 and v5p 4800 over 6), the network that of a pod (v5e 6.4, v6e 25.6 Tbit/s of
# 256 chips) or chip (v5p 50 Gbit/s; v4: two chips' share of a host's 100). GPUs: NVIDIA's data sheets, the SXM form
# (A100: 80 GB) unless the name says another; NVLink is half of the two-way figure (A100 600, H100 and H200 900, B200
# 1800 GB/s), the network one card a GPU as in a DGX (A100 200, others 400 Gbit/s). Cards are joined by PCIe 5 (64 GB/s
# one way): a bridge joins some of a host's, no switch any two.
CHIPS = {
    "v4": Chip(
        kind="TPU v4", hbm_bytes=32 * GIB, usable_bytes=32 * GIB, flops=275e12, hbm_bandwidth=1228e9,
        link_bandwidth=50e9, network_bandwidth=3.125e9, ring=4,
    ),
    "v5e": Chip(
        kind="TPU v5 lite", hbm_bytes=16 * GIB, usable_bytes=int(15.75 * GIB), flops=197e12, hbm_bandwidth=819e9,
        link_bandwidth=50e9, network_bandwidth=3.125e9, ring=16,
    ),
    "v5p": Chip(
        kind="TPU v5", hbm_bytes=95 * GIB, usable_bytes=int(95.73 * GIB), flops=459e12, hbm_bandwidth=2765e9,
        link_bandwidth=100e9, network_bandwidth=6.25e9, ring=4,
    ),
    "v6e": Chip(
        kind="TPU v6 lite", hbm_bytes=32 * GIB, usable_bytes=int(31.24 * GIB), flops=918e12, hbm_bandwidth=1640e9,
        link_bandwidth=100e9, network_bandwidth=12.5e9, ring=16,
    ),
    "a100": _gpu("NVIDIA A100", 80, 312e12, 2039e9, 300e9, 25e9, **_AMPERE),
    "h100": _gpu("NVIDIA H100", 80, 989e12, 3350e9, 450e9, 50e9, **_HOPPER),
    "h100-pcie": _gpu("NVIDIA H100 PCIe", 80, 756e12, 2000e9, 64e9, 50e9, **_HOPPER_PCIE),
    "h100-nvl": _gpu("NVIDIA H100 NVL", 94, 835e12, 3900e9, 64e9, 50e9, **_HOPPER_NVL),
    "h200": _gpu("NVIDIA H200", 141, 989e12, 4800e9, 450e9, 50e9, **_HOPPER),
    "h200-nvl": _gpu("NVIDIA H200 NVL", 141, 835e12, 4800e9, 64e9, 50e9, **_HOPPER_NVL),
    "b200": _gpu("NVIDIA B200", 180, 2250e12, 8000e9, 900e9, 50e9, **_BLACKWELL),
}  # fmt: skip

TPUS = ("v5e", "v5p", "v6e")
# Of a TPU host as libtpu takes it where nothing else is said.
CHIPS_A_HOST = 4
GPUS = tuple(name for name, chip in CHIPS.items() if chip.target_config)
# JAX's own variable, and its own value where it is not set.
GPU_SHARE, GPU_SHARE_IF_UNSET = "XLA_PYTHON_CLIENT_MEM_FRACTION", "0.75"
GPU_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for. Nothing runs on them.

    `domains` numbers, device by device, what a fast interconnect joins: TPU slices, or GPU hosts. `coordinates` are
    places in the torus of a slice (empty for GPUs).
    """

    name: str
    chip: Chip
    devices: tuple[Any, ...]
    domains: tuple[int, ...]
    coordinates: tuple[tuple[int, ...], ...]

    @property
    def slices(self) -> int:
        """The number of domains: what joins them is the data centre's network."""
        return len(set(self.domains))

    @property
    def usable_bytes(self) -> int:
        """What a program may take of a chip's memory: of a GPU as much as JAX reserves."""
        share = float(os.environ.get(GPU_SHARE, GPU_SHARE_IF_UNSET)) if self.chip.target_config else 1.0
        return int(share * self.chip.usable_bytes)

    @property
    def compiler_options(self) -> dict[str, Any]:
        """What `Lowered.compile` needs: kernels are timed on a GPU to choose among them, and here there is none."""
        return {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False} if self.chip.target_config else {}


def one_domain(name: str, chip: Chip, devices: Sequence[Any]) -> Topology:
    """Returns devices that are all joined alike, such as virtual ones."""
    return Topology(name, chip, tuple(devices), (0,) * len(devices), ((),) * len(devices))


def chip_of(device_kind: str) -> Chip | None:
    """Returns the chip behind JAX's `device_kind`, or None where it is not known (CPU)."""
    known = [chip for chip in CHIPS.values() if device_kind.startswith(chip.kind)]
    return max(known, key=lambda chip: len(chip.kind), default=None)


def open_topology(name: str, slices: int = 1) -> Topology:
    """Returns the devices of `v6e:2x4` (chips along each side of the torus) or `h100:1x8` (hosts x GPUs).

    Several `slices` of a TPU are joined by the data centre's network.

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
            f"topology {name!r}: write the chips along each side behind the colon, as in v6e:2x4 or h100:1x8"
        )
    sides = 3 if chip == "v5p" else 2
    if shape.count("x") + 1 != sides and chip in TPUS:
        raise UserError(
            f"topology {name!r}: a {chip} slice has {sides} sides, as in {'v5p:2x2x1' if sides == 3 else f'{chip}:2x4'}"
        )
    if slices < 1:
        raise UserError(f"slices must be at least 1, got {slices}")
    return _tpus(name, CHIPS[chip], shape, slices) if chip in TPUS else _gpus(name, CHIPS[chip], shape, slices)


def _tpus(name: str, chip: Chip, shape: str, slices: int) -> Topology:
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(f"topology {name!r} needs the TPU compiler: pip install 'iterpref_jax[plan]'")
    # libtpu would look for the machine's TPU in the cloud's metadata, and refuse a second process.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    sides = [int(side) for side in shape.split("x")]
    if math.prod(sides) < CHIPS_A_HOST:
        # Of a slice that is a part of a host, libtpu wants to know which.
        options["chips_per_host_bounds"] = [*sides, 1][:3]
    devices = _devices(name, platform="tpu", topology_name=name, **options)
    # Devices of a single slice do not say that they are of slice 0 in every version of JAX.
    domains = tuple(device.slice_index for device in devices) if slices > 1 else (0,) * len(devices)
    places = tuple(tuple(device.coords) for device in devices)
    return Topology(f"{slices} x {name}" if slices > 1 else name, chip, devices, domains, places)


def _gpus(name: str, chip: Chip, shape: str, slices: int) -> Topology:
    if not any(importlib.util.find_spec(plugin) for plugin in GPU_PLUGINS):
        raise UserError(f"topology {name!r} needs the GPU compiler: pip install 'iterpref_jax[cuda]'")
    if shape.count("x") != 1:
        raise UserError(f"topology {name!r}: GPUs are HOSTSxGPUS, as in {name.partition(':')[0]}:1x8")
    if slices > 1:
        hosts, gpus = map(int, shape.split("x"))
        raise UserError(f"topology {name!r}: slices are of TPUs; write the hosts, as in h100:{slices * hosts}x{gpus}")
    # The leading 1 is XLA's number of slices.
    topology = f"1x{shape}"
    devices = _devices(
        name, platform="cuda", topology_name=topology, topology=topology, target_config=chip.target_config
    )
    a_host = int(shape.split("x")[1])
    return Topology(name, chip, devices, tuple(i // a_host for i in range(len(devices))), ((),) * len(devices))


def _devices(name: str, **options: Any) -> tuple[Any, ...]:
    try:
        return tuple(topologies.get_topology_desc(**options).devices)
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"topology {name!r}: {error}") from error
