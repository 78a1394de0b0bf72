"""Meshes over the virtual devices of the tests."""

import math

import jax

from iterpref_jax.parallel.mesh import MeshSettings, make_mesh
from iterpref_jax.parallel.rules import Placement


def mesh_settings(**sizes):
    """Axes that are not named have one device."""
    return MeshSettings(**(dict(data=1, fsdp=1, expert=1, sequence=1, tensor=1) | sizes))


def placed(devices=None, **sizes):
    """A placement over the given devices, or over as many as it takes."""
    return Placement(make_mesh(mesh_settings(**sizes), devices or jax.devices()[: math.prod(sizes.values())]))
