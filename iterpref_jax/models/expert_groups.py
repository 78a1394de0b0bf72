"""A mixture of experts over devices that have some of the experts each; no token is dropped.

Devices that share the experts gather each other's tokens, run their own experts on those that chose them, and sum what
they return. What a device computes follows what was chosen, not the most that could be: its tokens, sorted by expert,
are taken in chunks of one static size, as many as there are. The backward pass makes the products again, chunk by
chunk: only inputs are kept, whatever is to be kept of a layer.

Letters: R row, T token, D embed, F mlp, E expert of this device, N token of the group, X chosen expert of a token,
C place in a chunk.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from iterpref_jax.parallel.collectives import Axes, gathered, place_along, summed, summed_apart
from iterpref_jax.parallel.rules import Placement

ROWS = ("row", "token_share", "activation_embed")
CHOICES = ("row", "token_share", "choice")
OUTER, INNER = ("expert", "embed", "mlp"), ("expert", "mlp", "embed")
DIMS = [ROWS, CHOICES, CHOICES, OUTER, OUTER, INNER]
# Kernels' embed dim: gate, up, down.
EMBED = (1, 1, 2)

# One chunk is enough unless this much more than an even share of the tokens chooses one device's experts.
SLACK = 1.25


@dataclasses.dataclass(frozen=True)
class Spread:
    """The mesh axes that split experts, the kernels' embed and mlp dims, and rows or tokens."""

    expert: Axes
    embed: Axes
    mlp: Axes
    rows: Axes

    @classmethod
    def of(cls, placement: Placement, x_RTD: jax.Array, gate_EDF: jax.Array) -> Spread:
        rows, tokens, _ = placement.split(ROWS, x_RTD.shape)
        expert, embed, mlp = placement.split(OUTER, gate_EDF.shape)
        return cls(expert, embed, mlp, rows + tokens)

    @property
    def copies(self) -> Axes:
        """The axes over which a kernel's gradient is summed and not split."""
        return tuple(axis for axis in self.rows if axis not in self.expert + self.embed)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def through_groups(
    placement: Placement, activation: Callable, x_RTD, weight_RTX, expert_RTX, gate_EDF, up_EDF, down_EFD
) -> jax.Array:
    """Returns the chosen experts' outputs, weighted and summed [R, T, D]; the rows' experts must be split."""
    return _forward(placement, activation, x_RTD, weight_RTX, expert_RTX, gate_EDF, up_EDF, down_EFD)[0]


def _forward(placement: Placement, activation: Callable, *arrays: jax.Array) -> tuple[jax.Array, tuple]:
    on_device = functools.partial(_forward_on_device, Spread.of(placement, arrays[0], arrays[3]), activation)
    return placement.map_shards(on_device, arrays, DIMS), arrays


def _backward(placement: Placement, activation: Callable, arrays: tuple, grad_RTD: jax.Array) -> tuple:
    on_device = functools.partial(_backward_on_device, Spread.of(placement, arrays[0], arrays[3]), activation)
    x, weight, *kernels = placement.map_shards(on_device, (*arrays, grad_RTD), [*DIMS, ROWS], outs=(0, 1, 3, 4, 5))
    return x, weight, None, *kernels


through_groups.defvjp(_forward, _backward)


def _forward_on_device(spread: Spread, activation: Callable, x_RTD, weight_RTX, expert_RTX, *kernels) -> jax.Array:
    own = _Own(spread, x_RTD, weight_RTX, expert_RTX, len(kernels[0]))
    kernels = _whole(spread, kernels)

    def add(number: jax.Array, total_ND: jax.Array) -> jax.Array:
        chunk = own.chunk(number)
        out_CD = _chosen(activation, chunk.sizes_E, own.x_ND[chunk.token_C], own.weight[chunk.choice_C], *kernels)
        return total_ND.at[chunk.token_C].add(chunk.only_used(out_CD), mode="drop")

    total_ND = jax.lax.fori_loop(0, own.chunks, add, jnp.zeros(own.x_ND.shape, jnp.float32))
    return own.returned(total_ND, x_RTD)


def _backward_on_device(spread: Spread, activation: Callable, x_RTD, weight_RTX, expert_RTX, *kernels_and_grad):
    *parts, grad_RTD = kernels_and_grad
    own = _Own(spread, x_RTD, weight_RTX, expert_RTX, len(parts[0]))
    kernels, grad_ND = _whole(spread, parts), own.listed(grad_RTD)

    def add(number: jax.Array, totals: tuple) -> tuple:
        to_x, to_weight, to_kernels = totals
        chunk = own.chunk(number)
        run = functools.partial(_chosen, activation, chunk.sizes_E)
        _, pull = jax.vjp(run, own.x_ND[chunk.token_C], own.weight[chunk.choice_C], *kernels)
        x_CD, weight_C, *parts = pull(chunk.only_used(grad_ND[chunk.token_C]).astype(x_RTD.dtype))
        to_x = to_x.at[chunk.token_C].add(chunk.only_used(x_CD), mode="drop")
        to_weight = to_weight.at[chunk.choice_C].add(chunk.only_used(weight_C), mode="drop")
        added = zip(to_kernels, parts, strict=True)
        return to_x, to_weight, [total + part.astype(jnp.float32) for total, part in added]

    like = own.x_ND, own.weight, list(kernels)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), like)
    to_x, to_weight, to_kernels = jax.lax.fori_loop(0, own.chunks, add, zeros)
    summed_kernels = (
        summed(summed_apart(total.astype(part.dtype), spread.embed, dim), spread.copies)
        for total, part, dim in zip(to_kernels, parts, EMBED, strict=True)
    )
    return own.returned(to_x, x_RTD), own.returned(to_weight, weight_RTX), *summed_kernels


def _whole(spread: Spread, kernels: Any) -> tuple[jax.Array, ...]:
    return tuple(gathered(kernel, spread.embed, dim) for kernel, dim in zip(kernels, EMBED, strict=True))


def _chosen(activation: Callable, sizes_E, x_CD, weight_C, gate_EDF, up_EDF, down_EFD) -> jax.Array:
    """Returns the weighted outputs [C, D] of tokens sorted by expert; behind the last expert's they mean nothing."""
    inner = activation(jax.lax.ragged_dot(x_CD, gate_EDF, sizes_E)) * jax.lax.ragged_dot(x_CD, up_EDF, sizes_E)
    return jax.lax.ragged_dot(inner, down_EFD, sizes_E) * weight_C[:, None]


@dataclasses.dataclass(frozen=True)
class _Chunk:
    """Some choices: their tokens, their numbers (token x X + choice), how many chose each expert, and which count."""

    token_C: jax.Array
    choice_C: jax.Array
    sizes_E: jax.Array
    used_C: jax.Array

    def only_used(self, array: jax.Array) -> jax.Array:
        """Returns [C, ...] with zeros where nothing was chosen, float32."""
        used = self.used_C.reshape(-1, *(1,) * (array.ndim - 1))
        return jnp.where(used, array, 0).astype(jnp.float32)


class _Own:
    """The tokens of the whole group, and its choices of this device's experts, in chunks that are sorted by expert."""

    def __init__(self, spread: Spread, x_RTD: jax.Array, weight_RTX: jax.Array, expert_RTX: jax.Array, experts: int):
        self._spread, self._choices = spread, expert_RTX.shape[-1]
        self.x_ND, self.weight = self.listed(x_RTD), self.listed(weight_RTX).reshape(-1)
        expert = self.listed(expert_RTX).reshape(-1) - place_along(spread.expert) * experts
        expert = jnp.where((expert >= 0) & (expert < experts), expert, experts)
        self._ends_E = jnp.cumsum(jnp.bincount(expert, length=experts + 1)[:experts])
        most = len(self.x_ND) * min(self._choices, experts)
        self._size = min(most, math.ceil(SLACK * expert_RTX.size))
        order = jnp.argsort(expert, stable=True)[:most]
        self._order = jnp.pad(order, (0, -most % self._size))
        self.chunks = (self._ends_E[-1] + self._size - 1) // self._size

    def listed(self, shard: jax.Array) -> jax.Array:
        """[R, T, ...] of this device -> [N, ...] of the group."""
        whole = gathered(shard, self._spread.expert, 0)
        return whole.reshape(-1, *whole.shape[2:])

    def returned(self, total: jax.Array, like: jax.Array) -> jax.Array:
        """Sums [N, ...] over the group's experts and the shards of mlp; returns the part of this device, as `like`."""
        total = summed_apart(total.reshape(-1, *like.shape[1:]).astype(like.dtype), self._spread.expert, 0)
        return summed(total, self._spread.mlp)

    def chunk(self, number: jax.Array) -> _Chunk:
        start = number * self._size
        choice_C = jax.lax.dynamic_slice_in_dim(self._order, start, self._size)
        ends_E = jnp.clip(self._ends_E - start, 0, self._size)
        used_C = start + jnp.arange(self._size) < self._ends_E[-1]
        return _Chunk(choice_C // self._choices, choice_C, jnp.diff(ends_E, prepend=0).astype(jnp.int32), used_C)
