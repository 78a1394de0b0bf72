"""Where dims meet mesh axes: the only table that names both."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
from jax.sharding import NamedSharding, PartitionSpec

from iterpref_jax.errors import UserError

# dim -> the mesh axes that shard it. A dim that is not listed here is a defect of ours, not a replicated one.
SHARDING_RULES: dict[str, tuple[str, ...]] = {
    "row": ("data", "fsdp"),
    # Rows that all devices of a replica hold.
    "replica_row": ("data",),
    "vocab": ("tensor",),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    # An activation's embed dim: its rows already use fsdp.
    "activation_embed": (),
    "layer": (),
    "expert": (),
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

        A dim whose size its axes do not divide (two key/value heads over four devices) is replicated: exact, only
        less sharded. Rows are the exception, because replicated rows would be counted once per device.
        """
        if len(dims) != len(shape):
            raise ValueError(f"dims {tuple(dims)} do not describe an array of shape {tuple(shape)}")
        return NamedSharding(self.mesh, PartitionSpec(*map(self._axes, dims, shape)))

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
        axes = self._axes(summed, size)

        def on_device(*shards: jax.Array) -> jax.Array:
            out = function(*shards)
            return jax.lax.psum(out, axes) if axes else out

        out_spec = self.sharding(out_dims, arrays[0].shape).spec
        return jax.shard_map(on_device, mesh=self.mesh, in_specs=tuple(specs), out_specs=out_spec)(*arrays)

    def map_shards(
        self, function: Callable[..., jax.Array], arrays: Sequence[jax.Array], dims: Sequence[Sequence[str]]
    ) -> jax.Array:
        """Runs `function` once a device on its shards of `arrays`; the result has the shape and dims of the first.

        Only dims that the function treats one by one (rows, heads) may be sharded.
        """
        specs = [self.sharding(names, array.shape).spec for names, array in zip(dims, arrays, strict=True)]
        # Pallas kernels do not say over which axes their results vary, so that cannot be checked.
        return jax.shard_map(function, mesh=self.mesh, in_specs=tuple(specs), out_specs=specs[0], check_vma=False)(
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
        return self._size(SHARDING_RULES["row"])

    def shards(self, dim: str, size: int) -> int:
        """Returns the number of parts that a dim of this size is split into."""
        return self._size(self.axes(dim, size))

    def axes(self, dim: str, size: int) -> tuple[str, ...]:
        """Returns the mesh axes that split a dim of this size into more than one part.

        Collectives over an axis of one device would be copies.
        """
        return tuple(axis for axis in self._axes(dim, size) or () if self.mesh.shape[axis] > 1)

    def _axes(self, dim: str, size: int) -> tuple[str, ...] | None:
        axes = SHARDING_RULES[dim]
        if size % self._size(axes) == 0:
            return axes or None
        if dim == "row":
            raise UserError(
                f"rows.rows_per_microbatch is {size}, but the mesh splits rows {self._size(axes)} ways "
                f"({' x '.join(axes)}); make it a multiple of {self._size(axes)}"
            )
        return None

    def _size(self, axes: Sequence[str]) -> int:
        size = 1
        for axis in axes:
            size *= self.mesh.shape[axis]
        return size
