"""FLOPs of a step and of a pair: what the mathematics needs, and what the devices execute."""

from __future__ import annotations

import dataclasses
import functools

from iterpref_jax.models.config import ModelConfig
from iterpref_jax.models.decoder import Decoder
from iterpref_jax.ops.linear_logp import block_size, keeps_logits, tile_sizes, walked_targets
from iterpref_jax.ops.tree_attention_gpu import pick_tiles
from iterpref_jax.ops.tree_attention_tpu import block_size as query_block
from iterpref_jax.plan.workload import Sample, Workload
from iterpref_jax.train.flops import Counts, executed_flops, laid_out, model_flops, seen, walked


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """FLOPs of one step over all devices, and of one pair."""

    executed: float
    model: float
    executed_a_pair: float
    model_a_pair: float
    # Tiles of targets that a device walks in each block of the vocabulary, a microbatch.
    tiles: int


def work(load: Workload, decoder: Decoder) -> Work:
    """Returns the FLOPs of a step; its rows are taken to be like those of the first one."""
    config, lora, run, caps = decoder.config, decoder.lora, load.settings, load.caps
    attention, a_microbatch = decoder.attention, load.settings.rows.rows_per_microbatch
    tiles, logits = _projected(load, decoder)
    # Rows of padding are computed too, but for attention.
    dense = [
        (laid_out(config, rows=1, tokens=length, targets=0, vocab=0), slots) for length, slots in load.slots.items()
    ]
    tokens, scores = (sum(getattr(a_row, what) * slots for a_row, slots in dense) for what in ("tokens", "scores"))
    scores = scores if attention == "xla" else load.rows * _walked(load.sample, config, attention)
    counts = Counts(round(tokens), round(logits * load.used_microbatches), round(scores))
    keeps = keeps_logits(decoder.projection(a_microbatch), a_microbatch * caps.targets * config.vocab_size)
    remat = run.model.compute.remat
    executed = executed_flops(config, counts, remat=remat, attention=attention, keeps_logits=keeps, lora=lora)
    sample, a_step = load.sample, run.train.global_batch
    needed = model_flops(config, seen(config, sample.positions, int(sample.used.sum())), lora) / sample.pairs
    return Work(
        executed=executed, model=needed * a_step, executed_a_pair=executed / a_step, model_a_pair=needed, tiles=tiles
    )


def _projected(load: Workload, decoder: Decoder) -> tuple[int, float]:
    """Returns the tiles of targets that a device walks in a microbatch, and the logits that all devices make in it."""
    a_microbatch, vocab = load.settings.rows.rows_per_microbatch, decoder.config.vocab_size
    placement, projection = decoder.placement, decoder.projection(a_microbatch)
    assert placement is not None
    shards = placement.row_shards() * placement.parts("target_share")
    used = load.sample.used.sum() / len(load.sample.used) * load.rows / load.used_microbatches / shards
    targets = -(-a_microbatch * load.caps.targets // shards)
    walked = walked_targets(projection, max(1, round(used)), targets)
    parts = placement.shards("vocab", vocab)
    block = block_size(projection.vocab, vocab // parts)
    blocks = -(-vocab // parts // block) * parts
    tiles = -(-walked // tile_sizes(projection, targets)[-1])
    return tiles, float(walked * shards * blocks * block)


@functools.lru_cache(maxsize=8)
def _walked(sample: Sample, config: ModelConfig, attention: str) -> float:
    """Returns the scores that the kernels compute in a row like those of the first step."""
    batch = sample.first_step
    rows, tokens = batch.tokens_RT.shape
    side, tile = query_block(tokens), pick_tiles(config.head_dim, 2).forward
    queries, keys = (side, side) if attention == "tpu" else (tile.queries, tile.keys)
    return walked(config, batch.visible_until_RT, batch.depth_RT, queries=queries, keys=keys) / rows
