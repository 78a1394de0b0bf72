"""Attention over packed trees: every form on equal work, against the dense float32 form. One JSON line a form.

    python benchmarks/kernels.py --rows 2 --tokens 1024
    python benchmarks/kernels.py --rows 4 --tokens 4096 --heads 28 --kv-heads 4 --dtype bfloat16 --data DATA
    python benchmarks/kernels.py --compile-only v5e:2x4 --tokens 4096        needs '.[plan]'

Rows hold pairs in the `shared` layout: real ones (`--data`, what `iterpref build` wrote), or of random lengths.

    dense    scores of the whole row at once, in the inputs' precision
    xla      blocks of queries           cpu, tpu, gpu    our kernels
    cudnn    jax.nn.dot_product_attention with the trees' mask as a bias (GPU)
    splash   JAX's TPU kernel on a causal mask, which cannot say what a tree sees; compiled only

The forms take turns; the median of the repeats counts, compilation apart. TFLOP/s count visible scores only: 4 H a
score and head forward, 12 H with the backward pass.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from measured import emit

from iterpref_jax.data.batch import RowBatch, empty_batch
from iterpref_jax.data.layout import RowSettings, Tree, Weighting, lay_out, place
from iterpref_jax.data.schema import Example, open_dataset
from iterpref_jax.errors import UserError
from iterpref_jax.objectives.weights import find_recipe
from iterpref_jax.ops.tree_attention import tree_attention
from iterpref_jax.ops.tree_blocks import visible
from iterpref_jax.parallel.mesh import ALL_DEVICES, make_mesh
from iterpref_jax.parallel.rules import Placement
from iterpref_jax.parallel.topology import open_topology

WEIGHTING = Weighting(recipe=find_recipe("target_rpo"), seed=0, nll_norm="example")
FORMS = {"cpu": ("dense", "xla", "cpu"), "gpu": ("dense", "xla", "gpu", "cudnn"), "tpu": ("dense", "xla", "tpu")}
COMPILED_ONLY = {"tpu": ("xla", "tpu", "splash"), "gpu": ("xla", "gpu")}

Attention = Callable[..., jax.Array]  # (query, key, value, visible_until, depth) -> attended


def flags(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = dict(rows=2, tokens=1024, heads=8, kv_heads=2, head_dim=128, window=0, repeats=5, seed=0)
    for name, size in sizes.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=size)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--data", default="", help="a dataset of `iterpref build`; empty: pairs of random lengths")
    parser.add_argument("--forms", nargs="+", help="which ones; all that the device has")
    parser.add_argument("--compile-only", default="", metavar="TOPOLOGY", help="such as v5e:2x4: nothing runs")
    return parser.parse_args(argv)


def random_pairs(rng: np.random.Generator, tokens: int) -> Iterator[Example]:
    """Yields pairs whose parts are up to a sixth of a row long."""
    while True:
        prompt, common, *tails = rng.integers(1, max(2, tokens // 6), 4)
        sides = [
            np.concatenate([np.full(common, 1), np.full(tail, 2 + i)]).astype(np.int32) for i, tail in enumerate(tails)
        ]
        focus = [np.ones(len(side), np.uint8) for side in sides]
        yield Example("", "", np.ones(prompt, np.int32), *sides, *focus)


def packed(options: argparse.Namespace) -> RowBatch:
    """Returns rows of trees: each takes pairs in order as long as they fit."""
    split = open_dataset(options.data).split("train") if options.data else None
    pairs = split or random_pairs(np.random.default_rng(options.seed), options.tokens)
    caps = dict(tokens=options.tokens, targets=2 * options.tokens, pairs=options.tokens)
    rows = RowSettings(layout="shared", truncate=True, lengths=0, rows_per_microbatch=options.rows, **caps)
    batch = empty_batch((options.rows,), **caps, terms=2 * options.tokens)
    filled: list[list[Tree]] = []
    for record, example in enumerate(pairs):
        tree = lay_out([example], [record], rows, WEIGHTING)
        if len(tree.tokens) > options.tokens:
            raise UserError(f"pair {example.pair_id} has {len(tree.tokens)} tokens: raise --tokens {options.tokens}")
        if not filled or sum(len(one.tokens) for one in filled[-1]) + len(tree.tokens) > options.tokens:
            if len(filled) == options.rows:
                break
            filled.append([])
        filled[-1].append(tree)
    if len(filled) < options.rows:
        raise UserError(f"--rows {options.rows}: the pairs of {options.data} fill only {len(filled)}")
    for row, trees in enumerate(filled):
        place(batch, (row,), trees, [None] * len(trees))
    return batch


def dense(
    query, key, value, until_RT, depth_RT, *, scale: float, window: int | None, implementation: Any = "xla"
) -> jax.Array:
    """Attention over a mask of T * T a row; cuDNN's takes no float32."""
    mask_R1TT = visible(until_RT, depth_RT, window)[:, None]
    return jax.nn.dot_product_attention(query, key, value, mask=mask_R1TT, scale=scale, implementation=implementation)


def splash(query, key, value, until_RT, depth_RT, *, scale: float, window: int | None) -> jax.Array:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    tokens, heads = query.shape[1:3]
    causal = masks.MultiHeadMask([masks.CausalMask((tokens, tokens))] * heads)
    attend = kernel.make_splash_mha_single_device(causal)
    return jax.vmap(attend)(*(x.swapaxes(1, 2) for x in (query * scale, key, value))).swapaxes(1, 2)


def form(name: str, options: argparse.Namespace, platform: str) -> Attention:
    """Returns the form of this name as a function of the arrays alone."""
    fixed = dict(scale=options.head_dim**-0.5, window=options.window or None)
    other = {"dense": dense, "splash": splash, "cudnn": functools.partial(dense, implementation="cudnn")}
    if name in other:
        return functools.partial(other[name], **fixed)
    return functools.partial(tree_attention, **fixed, implementation=name, platform=platform)


def with_gradients(attention: Attention) -> Callable[..., tuple]:
    """Returns (d attended, *arrays) -> (attended, gradients of query, key and value)."""

    def run(grad, query, key, value, until_RT, depth_RT):
        attended, pullback = jax.vjp(lambda *heads: attention(*heads, until_RT, depth_RT), query, key, value)
        return attended, *pullback(grad)

    return run


def shapes(options: argparse.Namespace) -> list[tuple[int, ...]]:
    """Returns the shapes of the output's gradient, query, key and value."""
    q, kv = ((options.rows, options.tokens, heads, options.head_dim) for heads in (options.heads, options.kv_heads))
    return [q, q, kv, kv]


def timed(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Returns the median seconds of each; they take turns, and the first time of each, which compiles, is left out."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(1 + repeats):
        for name, run in runs.items():
            began = time.perf_counter()
            jax.block_until_ready(run())
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(each[1:]) for name, each in times.items()}


def deviations(found: tuple, expected: tuple, is_token_RT: np.ndarray) -> dict[str, float]:
    """Returns the largest difference of each array at tokens, over the largest entry of the dense float32 form."""
    names = ("attended", "query_gradient", "key_gradient", "value_gradient")
    pairs = [[np.asarray(x, np.float32)[is_token_RT] for x in both] for both in zip(found, expected, strict=True)]
    return {name: float(np.abs(a - b).max() / np.abs(b).max()) for name, (a, b) in zip(names, pairs, strict=True)}


def measured(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    platform, batch = jax.default_backend(), packed(options)
    is_token_RT = batch.visible_until_RT > 0
    rng = np.random.default_rng(options.seed)
    # What padding gets is no one's business, so its outputs have no gradient.
    exact = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes(options)]
    exact[0] *= is_token_RT[:, :, None, None]
    columns = jnp.asarray(batch.visible_until_RT), jnp.asarray(batch.depth_RT)
    heads = [x.astype(options.dtype) for x in exact]
    forms = {name: form(name, options, platform) for name in options.forms or FORMS[platform]}
    rounded = [x.astype(jnp.float32) for x in heads]
    with jax.default_matmul_precision("highest"):
        exactly = jax.jit(with_gradients(form("dense", options, platform))).lower(*rounded, *columns)
    exact_program, *built = compile_all([exactly, *lowered(forms, *heads, *columns)])
    if is_refusal(exact_program):
        raise SystemExit(f"the dense form in float32, which the others are compared with: {exact_program}")
    programs = dict(zip(forms, zip(built[: len(forms)], built[len(forms) :], strict=True), strict=True))
    refused = {name: next(filter(is_refusal, pair), None) for name, pair in programs.items()}
    yield from ({"form": name, "error": said} for name, said in refused.items() if said)
    expected = exact_program(*rounded, *columns)
    forward, both = (
        {name: functools.partial(pair[i], *heads, *columns) for name, pair in programs.items() if not refused[name]}
        for i in range(2)
    )
    seconds, both_seconds = timed(forward, options.repeats), timed(both, options.repeats)
    scores = int(visible(*columns, options.window or None).sum()) * options.heads
    work = scores * options.head_dim / 1e12
    for name in both:
        yield {
            "form": name,
            "device": jax.devices()[0].device_kind,
            "forward_ms": 1e3 * seconds[name],
            "forward_backward_ms": 1e3 * both_seconds[name],
            "forward_backward_tokens_per_second": int(is_token_RT.sum()) / both_seconds[name],
            "forward_tflops_per_second": 4 * work / seconds[name],
            "forward_backward_tflops_per_second": 12 * work / both_seconds[name],
            "visible_of_causal": scores / options.heads / (options.rows * options.tokens * (options.tokens + 1) / 2),
            "deviation": deviations(both[name](), expected, is_token_RT),
        }


def lowered(forms: dict[str, Attention], *arrays: jax.Array) -> list[Any]:
    """Returns every form's forward pass, then every form's both passes, or what JAX says against one; all take the
    gradient of the output first.
    """
    forward = [jax.jit(lambda _, *given, run=run: run(*given)) for run in forms.values()]
    both = [jax.jit(with_gradients(run)) for run in forms.values()]
    return [_tried(program.lower, *arrays) for program in forward + both]


def compile_all(programs: Sequence[Any]) -> list[Any]:
    """Returns the lowered programs compiled, on all cores at once, or what the compiler says against one."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda each: each if is_refusal(each) else _tried(each.compile), programs))


def _tried(call: Callable[..., Any], *arrays: jax.Array) -> Any:
    try:
        return call(*arrays)
    # How JAX refuses a dtype or a head dim that a kernel does not take, a device that is too old, and no memory.
    except (ValueError, RuntimeError) as error:
        return (str(error).splitlines() or [repr(error)])[0][:200]


def is_refusal(built: Any) -> bool:
    """Whether this is what a compiler said against a program, and no program."""
    return isinstance(built, str)


def on_mesh(attention: Attention, placement: Placement) -> Attention:
    heads, columns = ("row", "token", "heads", "head_dim"), ("row", "token")
    return lambda *arrays: placement.map_shards(attention, arrays, [heads] * 3 + [columns] * 2)


def compiled(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Compiles the forms for one device of a topology, from shapes."""
    topology = open_topology(options.compile_only)
    platform = topology.devices[0].platform
    # Pallas learns the kind of the device from the mesh.
    placement = Placement(make_mesh(ALL_DEVICES, topology.devices[:1]))
    struct = functools.partial(jax.ShapeDtypeStruct, sharding=placement.replicated())
    heads = [struct(shape, options.dtype) for shape in shapes(options)]
    columns = [struct((options.rows, options.tokens), jnp.int32)] * 2
    for name in options.forms or COMPILED_ONLY[platform]:
        run = on_mesh(form(name, options, platform), placement)
        line: dict[str, Any] = {"form": name, "topology": topology.name}
        for part, function, arrays in (("forward", run, heads[1:]), ("forward_backward", with_gradients(run), heads)):
            began = time.perf_counter()
            program = jax.jit(function).lower(*arrays, *columns).compile(compiler_options=topology.compiler_options)
            line[f"{part}_compile_seconds"] = round(time.perf_counter() - began, 1)
            line[f"{part}_temporaries_mib"] = round(program.memory_analysis().temp_size_in_bytes / 2**20, 1)
        yield line


def main() -> None:
    options = flags()
    if options.compile_only:
        # The machine has none of these devices; without this, JAX would look for them.
        jax.config.update("jax_platforms", "cpu")
    for line in compiled(options) if options.compile_only else measured(options):
        emit(**vars(options) | line, jax=jax.__version__)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"kernels: {error}")
