"""The device mesh: its axes, and which device lies where on them.

From the outermost, which exchanges least, to the innermost:
    data      replicas; may span slices of TPUs and hosts
    fsdp      rows; the weights and the optimizer's numbers are split over it too
    expert    rows, and the experts of a mixture
    sequence  the tokens of a row (context parallel); within attention its heads
    tensor    heads, the MLP and the vocabulary
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils

from iterpref_jax.errors import UserError

AXES = ("data", "fsdp", "expert", "sequence", "tensor")
# These exchange activations in every layer, and nothing can be computed meanwhile.
FAST_AXES = ("expert", "sequence", "tensor")
GPU_PLATFORMS = ("gpu", "cuda", "rocm")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshSettings:
    """Devices along each mesh axis; -1 on one axis takes the devices that are left."""

    data: int
    fsdp: int
    expert: int
    sequence: int
    tensor: int


# Parameters sharded over whatever devices there are.
ALL_DEVICES = MeshSettings(data=1, fsdp=-1, expert=1, sequence=1, tensor=1)


def make_mesh(settings: MeshSettings, devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
    """Returns the mesh over all devices (or the given ones).

    Raises:
        UserError: the product of the axis sizes is not the number of devices, or an axis that needs fast links would
            lie across a slow network (see `arranged`).
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = _fill(dataclasses.asdict(settings), len(devices))
    # Mesh axes of type Explicit would type every array in the model; GSPMD propagates instead.
    auto = (jax.sharding.AxisType.Auto,) * len(AXES)
    return jax.sharding.Mesh(arranged(sizes, devices), AXES, axis_types=auto)


def arranged(sizes: dict[str, int], devices: Sequence[Any]) -> np.ndarray:
    """Returns the devices in the shape of the mesh, neighbours on inner axes on the fastest links.

    TPUs: an axis follows the links of the torus, and `data` is outermost over slices. GPUs: hosts one after the other.

    Raises:
        UserError: TPU slices that `data` does not split, hosts of GPUs that one of `FAST_AXES` would cross, or chips
            that cannot be arranged so.
    """
    shape = tuple(sizes[axis] for axis in AXES)
    if devices[0].platform == "tpu":
        return _on_torus(sizes, shape, devices)
    if devices[0].platform in GPU_PLATFORMS:
        devices = _by_host(sizes, devices)
    arrangement = np.empty(len(devices), object)
    arrangement[:] = devices
    return arrangement.reshape(shape)


def slice_of(device: Any) -> int:
    """Returns the number of a device's slice; where there is one only, devices need not say so."""
    return getattr(device, "slice_index", 0)


def _on_torus(sizes: dict[str, int], shape: tuple[int, ...], devices: Sequence[Any]) -> np.ndarray:
    slices = len({slice_of(device) for device in devices})
    if sizes["data"] % slices:
        raise UserError(
            f"mesh.data is {sizes['data']}, but the devices are {slices} slices: only whole replicas lie in different "
            f"slices, so set mesh.data to a multiple of {slices}"
        )
    within = (shape[0] // slices, *shape[1:])
    across = (slices,) + (1,) * (len(shape) - 1)
    try:
        if slices == 1:
            return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        return mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)
    except (NotImplementedError, ValueError) as error:
        raise UserError(f"the mesh {sizes} cannot be laid over these chips: {error}; change mesh.*") from error


def _by_host(sizes: dict[str, int], devices: Sequence[Any]) -> list[Any]:
    """Returns GPUs host by host.

    XLA gives the GPUs of one host one slice. Where it knows of one slice only, a process with several GPUs is a host.
    """
    several = len({slice_of(device) for device in devices}) > 1
    hosts: dict[int, list[Any]] = collections.defaultdict(list)
    for device in sorted(devices, key=lambda device: device.id):
        hosts[slice_of(device) if several else device.process_index].append(device)
    fast, counts = math.prod(sizes[axis] for axis in FAST_AXES), sorted({len(host) for host in hosts.values()})
    if len(hosts) > 1 and counts[-1] > 1 and any(count % fast for count in counts):
        product = " x ".join(f"mesh.{axis}" for axis in FAST_AXES)
        raise UserError(
            f"{product} is {fast}, but the hosts have {' or '.join(map(str, counts))} GPUs: these axes exchange "
            "activations in every layer and must not cross hosts; make their product a divisor of that number, and let "
            "mesh.fsdp or mesh.data span the hosts"
        )
    return [device for _, host in sorted(hosts.items()) for device in host]


def _fill(sizes: dict[str, int], devices: int) -> dict[str, int]:
    free = [axis for axis, size in sizes.items() if size == -1]
    bad = [axis for axis, size in sizes.items() if size < 1 and size != -1]
    if bad or len(free) > 1:
        raise UserError(f"mesh sizes must be 1 or more, with -1 on at most one axis; got {sizes}")
    if free:
        others = math.prod(size for size in sizes.values() if size != -1)
        if devices % others:
            raise UserError(
                f"the mesh {sizes} needs a multiple of {others} devices, but there are {devices}; change mesh.*"
            )
        sizes = sizes | {free[0]: devices // others}
    if math.prod(sizes.values()) != devices:
        raise UserError(
            f"the mesh {sizes} needs {math.prod(sizes.values())} devices, but there are {devices}; change mesh.*"
        )
    return sizes
