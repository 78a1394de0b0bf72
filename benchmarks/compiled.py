"""The training step of a large model, compiled for accelerators that are not there: memory a chip and FLOPs a pair.

    pip install 'iterpref_jax[plan]'        TPUs; GPUs: 'iterpref_jax[cuda]'
    python benchmarks/compiled.py              Qwen2.5-Coder-7B, 8 x v6e, 2 pairs of 2,048 tokens a chip
    python benchmarks/compiled.py --model 32b --topology v5p:4x4x4 --tensor 1 4 --largest
    python benchmarks/compiled.py --topology h100:1x8 --layouts separate shared focal

It is the step of `iterpref train`, in the settings of a config file, from shapes alone. Every row holds
`--pairs-per-row` pairs of the given lengths and is as long as the layout needs; `focal` is `shared` without what
carries no loss. One JSON line a topology, mesh and layout. `--largest` also looks for the most rows a microbatch, by
compiling again and again.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from measured import ROOT, emit, note

from iterpref_jax import settings
from iterpref_jax.data.batch import RowBatch, empty_batch
from iterpref_jax.data.layout import Tree, lay_out, place
from iterpref_jax.data.packing import Caps
from iterpref_jax.data.schema import Example
from iterpref_jax.models.decoder import Decoder
from iterpref_jax.models.hf_config import from_hf
from iterpref_jax.objectives.preference import used_targets
from iterpref_jax.ops.linear_logp import block_size, keeps_logits
from iterpref_jax.ops.tree_attention_gpu import pick_tiles
from iterpref_jax.ops.tree_attention_tpu import block_size as query_block
from iterpref_jax.parallel.mesh import make_mesh
from iterpref_jax.parallel.rules import Placement
from iterpref_jax.parallel.topology import Topology, open_topology
from iterpref_jax.train.compiled import CompiledStep, DoesNotFit, compile_step
from iterpref_jax.train.flops import executed_flops, laid_out, model_flops, seen, walked
from iterpref_jax.train.run import RunSettings

CONFIG = str(ROOT / "configs" / "target_rpo_qwen2_5_coder_7b.py")
# config.json of Qwen2.5-Coder.
_QWEN = dict(
    model_type="qwen2", vocab_size=152064, rope_theta=1e6, rms_norm_eps=1e-6, tie_word_embeddings=False
)  # fmt: skip
MODELS = {
    "7b": _QWEN | dict(
        hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4
    ),
    "32b": _QWEN | dict(
        hidden_size=5120, intermediate_size=27648, num_hidden_layers=64, num_attention_heads=40, num_key_value_heads=8
    ),
    "tiny": _QWEN | dict(
        hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
    ),
}  # fmt: skip
LAYOUTS = {"separate": ("separate", False), "shared": ("shared", False), "focal": ("shared", True)}
LANES = 128


def flags(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="7b")
    parser.add_argument("--topology", nargs="+", default=["v6e:2x4"], help="such as v5e:4x4, v5p:2x2x1, h100:1x8")
    parser.add_argument(
        "--tensor", type=int, nargs="+", default=[1], help="chips that share a layer; fsdp has the rest"
    )
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=["separate"])
    parser.add_argument("--rows-per-chip", type=int, default=2, help="rows a microbatch / (chips / tensor)")
    parser.add_argument("--pairs-per-row", type=int, default=1)
    parser.add_argument("--microbatches", type=int, default=1, help="more than one adds a sum of gradients")
    lengths = dict(prompt=300, completion=724, common=300, rejected_until=420, focus=24)
    for name, tokens in lengths.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=tokens, help="tokens of a pair")
    parser.add_argument("--config", default=CONFIG, help="whose settings; the model is --model")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="config fields to change")
    parser.add_argument("--largest", action="store_true", help="look for the most rows a microbatch")
    return parser.parse_args(argv)


def run_settings(options: argparse.Namespace, layout: str, tensor: int, rows: int) -> RunSettings:
    """Returns the config's settings for this model, layout, mesh and rows a microbatch."""
    name, truncate = LAYOUTS[layout]
    values = {
        **{f"model.init.{key}": value for key, value in MODELS[options.model].items()},
        "model.path": "",
        "data.path": "none",
        "rows.layout": name,
        "rows.truncate": truncate,
        "rows.rows_per_microbatch": rows,
        "mesh.tensor": tensor,
    }
    overrides = [f"{key}={value}" for key, value in values.items()] + options.set
    return settings.read_run(settings.load_config(options.config, overrides))


def made_pair(options: argparse.Namespace) -> Example:
    """Returns a pair of the given lengths; the focus is the last `--focus` tokens before `--rejected-until`."""
    place_in = np.arange(options.completion)
    focus = (place_in >= options.rejected_until - options.focus) & (place_in < options.rejected_until)
    chosen = 1 + place_in.astype(np.int32)
    rejected = np.where(place_in < options.common, chosen, 0).astype(np.int32)
    prompt = np.ones(options.prompt, np.int32)
    return Example("", "", prompt, chosen, rejected, focus.astype(np.uint8), focus.astype(np.uint8))


def full_row(tree: Tree, pairs: int) -> tuple[Caps, RowBatch]:
    """Returns the caps of a row that `pairs` such trees fill up to whole lanes, and that row."""

    def whole(size: int) -> int:
        return -(-pairs * size // LANES) * LANES

    caps = Caps(
        tokens=whole(len(tree.tokens)), targets=whole(len(tree.target)), terms=whole(len(tree.term)), pairs=pairs
    )
    row = empty_batch((1,), **dataclasses.asdict(caps))
    place(row, (0,), [tree] * pairs, [None] * pairs)
    return caps, row


def executed(run: RunSettings, decoder: Decoder, caps: Caps, row: RowBatch, row_shards: int) -> float:
    """Returns the FLOPs of one row's training."""
    config, attention = decoder.config, decoder.attention
    rows = run.rows.rows_per_microbatch // row_shards
    vocab, shards = config.vocab_size, decoder.placement.shards("vocab", config.vocab_size)
    projection = decoder.projection(run.rows.rows_per_microbatch)
    block = block_size(projection.vocab, vocab // shards)
    blocks = -(-vocab // shards // block) * shards
    used, tile = rows * int(used_targets(row).sum()), projection.targets
    tiles = -(-used // tile)
    counts = laid_out(config, rows=1, tokens=caps.tokens, targets=tiles * tile // rows, vocab=blocks * block)
    if attention != "xla":
        side, tile = query_block(caps.tokens), pick_tiles(config.head_dim, 2).forward
        queries, keys = (side, side) if attention == "tpu" else (tile.queries, tile.keys)
        scores = walked(config, row.visible_until_RT, row.depth_RT, queries=queries, keys=keys)
        counts = dataclasses.replace(counts, scores=scores)
    keeps = keeps_logits(projection, run.rows.rows_per_microbatch * caps.targets * vocab)
    return executed_flops(config, counts, remat=run.model.compute.remat, attention=attention, keeps_logits=keeps)


def largest(fits: Callable[[int], bool], tried: int, fitted: bool) -> int:
    """Returns the most rows that fit: doubled from the number that was tried until they do not, then bisected."""
    low, high = (tried, 2 * tried) if fitted else (0, tried)
    while fitted and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def measure(options: argparse.Namespace, topology: Topology, tensor: int, layout: str) -> dict[str, Any]:
    """Compiles one case and returns its line."""
    shards = len(topology.devices) // tensor

    def at(rows_per_chip: int) -> RunSettings:
        return run_settings(options, layout, tensor, rows_per_chip * shards)

    run = at(options.rows_per_chip)
    config = from_hf(run.model.init)
    tree = lay_out([made_pair(options)], [0], run.rows, run.weighting)
    caps, row = full_row(tree, options.pairs_per_row)
    decoder = Decoder(config, run.model.compute, Placement(make_mesh(run.mesh, topology.devices)))

    def compiled(rows_per_chip: int) -> CompiledStep | None:
        try:
            return compile_step(at(rows_per_chip), config, caps, microbatches=options.microbatches, topology=topology)
        except DoesNotFit as error:
            note(f"{topology.name} {layout}, {rows_per_chip} rows a chip: {str(error).splitlines()[0]}")
            return None

    began = time.monotonic()
    step = compiled(options.rows_per_chip)
    found = {
        "compile_seconds": round(time.monotonic() - began, 1),
        "memory_gib": step and {name: round(size / 2**30, 2) for name, size in dataclasses.asdict(step.memory).items()},
        "executed_tflops_per_pair": executed(run, decoder, caps, row, shards) / options.pairs_per_row / 1e12,
        "model_tflops_per_pair": model_flops(config, seen(config, tree.depth, len(tree.target))) / 1e12,
    }
    if options.largest:
        tried = options.rows_per_chip, step is not None
        found["largest_rows_per_chip"] = largest(lambda rows: compiled(rows) is not None, *tried)
    shape = {"row": dataclasses.asdict(caps), "row_shards": shards, "attention": decoder.attention}
    return {"topology": topology.name, "tensor": tensor, "layout": layout} | shape | found


def cases(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for name in options.topology:
        topology = open_topology(name)
        for tensor in options.tensor:
            for layout in options.layouts:
                yield measure(options, topology, tensor, layout)


def main() -> None:
    options = flags()
    # The machine has none of these devices; without this, JAX would look for them.
    jax.config.update("jax_platforms", "cpu")
    for line in cases(options):
        emit(**vars(options) | line | {"config": Path(options.config).name, "jax": jax.__version__})


if __name__ == "__main__":
    main()
