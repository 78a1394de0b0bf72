"""Tiles of the GPU's attention kernels: each kernel's time under other tiles, on the packed rows of kernels.py.

    python benchmarks/gpu_tiles.py --rows 4 --tokens 4096 --heads 12 --kv-heads 2 --head-dim 128 --dtype bfloat16

One kernel's tile is varied at a time, the other two are those of `pick_tiles`: `forward` is timed alone, `query` and
`key` with both passes around them. A JSON line a kernel and tile, the fastest first; a tile that does not compile, or
whose results lie apart from those of the usual tiles, says so instead of a time.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import kernels
import numpy as np
from measured import emit

from iterpref_jax.ops import tree_attention_gpu as gpu
from iterpref_jax.ops.tree_attention_gpu import Tile, Tiles

# (queries, keys) of a block by kernel, and (warps, stages).
SIDES = {
    "forward": [(128, 128), (128, 64), (64, 128), (64, 64), (128, 32)],
    "query": [(128, 64), (64, 64), (64, 128), (128, 32), (64, 32)],
    "key": [(64, 64), (64, 128), (32, 128), (32, 64), (128, 64)],
}
EFFORTS = [(4, 2), (4, 3), (8, 2), (8, 3)]
# As far as roundings of bfloat16 part two orders of summation.
TOLERANCE = 2**-6


def candidates(usual: Tiles) -> Iterator[tuple[str, Tiles]]:
    """Yields (kernel, tiles): the usual ones, then each change of that kernel's tile."""
    for kernel in Tiles._fields:
        yield kernel, usual
        for sides, effort in itertools.product(SIDES[kernel], EFFORTS):
            tiles = usual._replace(**{kernel: Tile(*sides, *effort)})
            if tiles != usual:
                yield kernel, tiles


def lowered(kernel: str, tiles: Tiles, arrays: list[jax.Array], options: argparse.Namespace) -> jax.stages.Lowered:
    """Returns the forward pass alone, or both passes, with these tiles."""
    pick_tiles, gpu.pick_tiles = gpu.pick_tiles, lambda *_: tiles
    try:
        attention = kernels.form("gpu", options, "gpu")
        if kernel == "forward":
            return jax.jit(lambda _, *given: attention(*given)).lower(*arrays)
        return jax.jit(kernels.with_gradients(attention)).lower(*arrays)
    finally:
        gpu.pick_tiles = pick_tiles


def measured(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    batch = kernels.packed(options)
    is_token_RT = jnp.asarray(batch.visible_until_RT > 0)
    rng = np.random.default_rng(options.seed)
    heads = [jnp.asarray(rng.normal(size=shape), options.dtype) for shape in kernels.shapes(options)]
    heads[0] *= is_token_RT[:, :, None, None].astype(heads[0].dtype)
    arrays = [*heads, jnp.asarray(batch.visible_until_RT), jnp.asarray(batch.depth_RT)]
    cases = list(candidates(gpu.pick_tiles(options.head_dim, heads[0].dtype.itemsize)))
    built = kernels.compile_all([lowered(kernel, tiles, arrays, options) for kernel, tiles in cases])
    for kernel in Tiles._fields:
        own = {tiles: program for (name, tiles), program in zip(cases, built, strict=True) if name == kernel}
        usual = next(iter(own))
        wanted = [np.asarray(x, np.float32) for x in jax.tree.leaves(own[usual](*arrays))]
        lines = {tiles: {"error": said} for tiles, said in own.items() if kernels.is_refusal(said)}
        for tiles in own.keys() - lines.keys():
            far = max(map(_apart, jax.tree.leaves(own[tiles](*arrays)), wanted))
            lines[tiles] = {"deviation": far} | ({} if far < TOLERANCE else {"error": "other results"})
        runs = {tiles: (lambda run=own[tiles]: run(*arrays)) for tiles, line in lines.items() if "error" not in line}
        for tiles, seconds in kernels.timed(runs, options.repeats).items():
            lines[tiles]["ms"] = 1e3 * seconds
        for tiles, line in sorted(lines.items(), key=lambda pair: pair[1].get("ms", float("inf"))):
            yield {"kernel": kernel, "usual": tiles == usual, **getattr(tiles, kernel)._asdict(), **line}


def _apart(got: jax.Array, wanted: np.ndarray) -> float:
    return float(np.abs(np.asarray(got, np.float32) - wanted).max() / np.abs(wanted).max())


def main() -> None:
    options = kernels.flags()
    for line in measured(options):
        emit(**{"device": jax.devices()[0].device_kind} | line)


if __name__ == "__main__":
    main()
