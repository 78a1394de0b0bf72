"""Where dims meet mesh axes: the only table that names both."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from iterpref_jax.errors import UserError

# dim -> the mesh axes that shard it. A dim that is not listed here is a defect of ours, not a replicated one.
SHARDING_RULES: dict[str, tuple[str, ...]] = {
    "row": ("data", "fsdp", "expert"),
    # Rows that all devices of a replica hold.
    "replica_row": ("data",),
    # A row's tokens as activations have them, and the targets that are scored: each device has its share.
    "token_share": ("sequence",),
    "target_share": ("sequence",),
    "vocab": ("tensor",),
    # Of weights. Devices that differ in rows or tokens alone use the same weights: each keeps a part of them.
    "embed": ("fsdp", "expert", "sequence"),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    # Heads within attention, which needs whole rows: the devices that share a row's tokens share its heads there.
    "head_share": ("tensor", "sequence"),
    "mlp": ("tensor",),
    # An activation's embed dim: its rows and tokens already use these axes.
    "activation_embed": (),
    "layer": (),
    "expert": ("expert",),
    "choice": (),
    "lora_rank": (),
    "head_dim": (),
    "token": (),
    "microbatch": (),
    "target": (),
    "term": (),
    "pair": (),
}


@dataclasses.dataclass(frozen=True)
class Placement:
    """A mesh and the rules: turns the dims of an array into its sharding."""

    mesh: jax.sharding.Mesh

    def sharding(self, dims: Sequence[str], shape: Sequence[int]) -> NamedSharding:
        """Returns the sharding of an array whose dims have these names.

        A dim is split over its axes from the first on, as far as they divide its size and no other dim of the array has
        taken them; what is left is replicated (two key/value heads over four devices): exact, only less sharded. Rows
        are the exception, because replicated rows would be counted once per device.
        """
        return NamedSharding(self.mesh, PartitionSpec(*(axes or None for axes in self.split(dims, shape))))

    def split(self, dims: Sequence[str], shape: Sequence[int]) -> list[tuple[str, ...]]:
        """Returns for each dim of an array the mesh axes that split it into more than one part."""
        if len(dims) != len(shape):
            raise ValueError(f"dims {tuple(dims)} do not describe an array of shape {tuple(shape)}")
        found: dict[int, tuple[str, ...]] = {}
        # Dims of few axes choose first: they have nowhere else to go.
        for place in sorted(range(len(dims)), key=lambda place: len(SHARDING_RULES[dims[place]])):
            taken = {axis for axes in found.values() for axis in axes}
            found[place] = self._axes(dims[place], shape[place], taken)
        return [found[place] for place in range(len(dims))]

    def constrain(self, array: jax.Array, dims: Sequence[str]) -> jax.Array:
        """Pins the sharding of an intermediate array inside a jitted function."""
        return jax.lax.with_sharding_constraint(array, self.sharding(dims, array.shape))

    def map_rows(
        self,
        function: Callable[..., jax.Array],
        arrays: Sequence[jax.Array],
        dims: Sequence[Sequence[str]],
        out_dims: Sequence[str],
        *,
        summed: str,
    ) -> jax.Array:
        """Runs `function` once a device on its shards of `arrays` and sums the parts over the shards of dim `summed`.

        Only dims that the function treats one by one (rows), or sums over (`summed`), may be sharded; the result has
        the shape of the first array.
        """
        specs = [self.sharding(names, array.shape).spec for names, array in zip(dims, arrays, strict=True)]
        size = next(array.shape[list(n).index(summed)] for n, array in zip(dims, arrays, strict=True) if summed in n)
        axes = self.axes(summed, size)

        def on_device(*shards: jax.Array) -> jax.Array:
            out = function(*shards)
            return jax.lax.psum(out, axes) if axes else out

        out_spec = self.sharding(out_dims, arrays[0].shape).spec
        return jax.shard_map(on_device, mesh=self.mesh, in_specs=tuple(specs), out_specs=out_spec)(*arrays)

    def map_shards(
        self,
        function: Callable[..., Any],
        arrays: Sequence[jax.Array],
        dims: Sequence[Sequence[str]],
        outs: Sequence[int] = (),
    ) -> Any:
        """Runs `function` once a device on its shards of `arrays`.

        The result has the shape and dims of the first array, or, with `outs`, each result those of the array of that
        number. Only dims that the function treats one by one (rows, heads) may be sharded, or it exchanges them itself.
        """
        specs = [self.sharding(names, array.shape).spec for names, array in zip(dims, arrays, strict=True)]
        out_specs = tuple(specs[number] for number in outs) if outs else specs[0]
        # Pallas kernels do not say over which axes their results vary, so that cannot be checked.
        return jax.shard_map(function, mesh=self.mesh, in_specs=tuple(specs), out_specs=out_specs, check_vma=False)(
            *arrays
        )

    @property
    def platform(self) -> str:
        """The platform of the mesh's devices, which need not be this process's: a step can be compiled for others."""
        return self.mesh.devices.flat[0].platform

    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    def row_shards(self) -> int:
        """The number of parts that rows are split into: rows a microbatch must be a multiple of it."""
        return self.parts("row")

    def parts(self, dim: str) -> int:
        """Returns the number of parts that a dim is split into where its size and the other dims allow it."""
        return self._size(SHARDING_RULES[dim])

    def shards(self, dim: str, size: int) -> int:
        """Returns the number of parts that a dim of this size is split into."""
        return self._size(self.axes(dim, size))

    def axes(self, dim: str, size: int) -> tuple[str, ...]:
        """Returns the mesh axes that split a dim of this size into more than one part, if no other dim has them.

        Collectives over an axis of one device would be copies.
        """
        return self._axes(dim, size, taken=())

    def _axes(self, dim: str, size: int, taken: Any) -> tuple[str, ...]:
        found: tuple[str, ...] = ()
        for axis in self._live(dim):
            if axis not in taken:
                if size % self._size((*found, axis)):
                    break
                found = *found, axis
        if dim == "row" and self._size(found) != self.row_shards():
            raise UserError(
                f"rows.rows_per_microbatch is {size}, but the mesh splits rows {self.row_shards()} ways "
                f"({' x '.join(SHARDING_RULES[dim])}); make it a multiple of {self.row_shards()}"
            )
        return found

    def _live(self, dim: str) -> tuple[str, ...]:
        return tuple(axis for axis in SHARDING_RULES[dim] if self.mesh.shape[axis] > 1)

    def _size(self, axes: Sequence[str]) -> int:
        return math.prod(self.mesh.shape[axis] for axis in axes)
