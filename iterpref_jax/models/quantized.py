"""Frozen kernels in 4 or 8 bits: blocks of numbers that share one scale (QLoRA, arXiv 2305.14314).

A block lies along one dim of a kernel, so codes and scales have the kernel's dims and are sharded as it would be.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from iterpref_jax.errors import UserError

BLOCK = 64
# Quantiles of a normal distribution, scaled to [-1, 1], with an exact zero (QLoRA, appendix E).
NF4 = np.array(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
     -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
     0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0], np.float32,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Format:
    """How many numbers one stored byte holds."""

    numbers_a_byte: int


FORMATS = {"nf4": Format(2), "int8": Format(1)}


def block_size(size: int) -> int:
    """Returns the largest even divisor of a dim's size that is at most `BLOCK`.

    Raises:
        UserError: an odd size.
    """
    if size % 2:
        raise UserError(f"model.lora.quantize needs even dims, and one has size {size}; leave it empty")
    return max(block for block in range(2, min(BLOCK, size) + 1, 2) if size % block == 0)


def quantize(kernel: jax.Array, kind: str, dim: int) -> tuple[jax.Array, jax.Array]:
    """Returns (codes, float32 scales) of a kernel whose blocks lie along `dim`.

    The dim of the codes is divided by the numbers a byte, that of the scales by the block size.
    """
    moved = jnp.moveaxis(kernel.astype(jnp.float32), dim, -1)
    blocks = moved.reshape(*moved.shape[:-1], -1, block_size(moved.shape[-1]))
    scales = jnp.abs(blocks).max(-1, keepdims=True)
    unit = blocks / jnp.where(scales > 0, scales, 1)
    if kind == "nf4":
        # The code whose value is nearest: counts the midpoints below.
        index = (unit[..., None] > (NF4[1:] + NF4[:-1]) / 2).sum(-1).astype(jnp.uint8).reshape(moved.shape)
        codes = index[..., 0::2] | (index[..., 1::2] << 4)
    else:
        codes = jnp.round(unit * 127).astype(jnp.int8).reshape(moved.shape)
    return jnp.moveaxis(codes, -1, dim), jnp.moveaxis(scales[..., 0], -1, dim)


def dequantize(codes: jax.Array, scales: jax.Array, kind: str, dim: int, dtype: jnp.dtype) -> jax.Array:
    """Returns the kernel that (codes, scales) stand for, in `dtype`."""
    codes, scales = jnp.moveaxis(codes, dim, -1), jnp.moveaxis(scales, dim, -1)
    if kind == "nf4":
        index = jnp.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:-1], -1)
        unit = jnp.asarray(NF4)[index]
    else:
        unit = codes.astype(jnp.float32) / 127
    blocks = unit.reshape(*scales.shape, -1) * scales[..., None]
    return jnp.moveaxis(blocks.reshape(unit.shape), -1, dim).astype(dtype)
