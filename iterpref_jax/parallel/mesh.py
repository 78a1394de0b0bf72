"""The device mesh: axes `data` (replicas), `fsdp` (sharded replicas) and `tensor` (sharded layers)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax

from iterpref_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshSettings:
    """Devices along each mesh axis; -1 on one axis takes the devices that are left."""

    data: int
    fsdp: int
    tensor: int


# Parameters sharded over whatever devices there are.
ALL_DEVICES = MeshSettings(data=1, fsdp=-1, tensor=1)


def make_mesh(settings: MeshSettings, devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
    """Returns the mesh over all devices (or the given ones).

    Raises:
        UserError: the product of the axis sizes is not the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = _fill(dataclasses.asdict(settings), len(devices))
    # jax.make_mesh defaults to Explicit axes, which would type every array in the model; GSPMD propagates instead.
    auto = (jax.sharding.AxisType.Auto,) * len(AXES)
    return jax.make_mesh(tuple(sizes[axis] for axis in AXES), AXES, axis_types=auto, devices=devices)


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
