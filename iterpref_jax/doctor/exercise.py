"""A small training step and collectives on all devices: what only shows when something runs."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from iterpref_jax.data.batch import RowBatch, empty_batch
from iterpref_jax.doctor.finding import Finding, fail, ok
from iterpref_jax.models.config import ModelConfig
from iterpref_jax.models.decoder import Compute, Decoder
from iterpref_jax.models.hf_config import from_hf
from iterpref_jax.models.transformer import init_params
from iterpref_jax.objectives.preference import ObjectiveSettings, normalisers
from iterpref_jax.parallel.mesh import ALL_DEVICES, make_mesh
from iterpref_jax.parallel.rules import Placement
from iterpref_jax.train.optimizer import OptimizerSettings, make_optimizer, make_schedule
from iterpref_jax.train.step import (
    batch_shardings,
    init_state,
    jitted,
    make_eval_step,
    make_train_step,
    state_shardings,
)

# Losses of one device and of all of them differ by rounding: in bfloat16 by less than this part.
SAME = 0.02
MIB = 2**20
_TOKENS, _TARGETS, _VOCAB = 128, 32, 512
_REPEATS = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the config wants a step computed; the model is one of ours, a layer of width 256."""

    compute: Compute
    objective: ObjectiveSettings
    optimizer: OptimizerSettings

    @property
    def dtype(self) -> str:
        """Of the parameters: master copies have an effect on bfloat16 alone."""
        return "bfloat16" if self.optimizer.master else "float32"


def check_step(recipe: Recipe, placement: Placement) -> list[Finding]:
    """Compiles and runs an update of a small model over the mesh, and compares its loss with one device's."""
    began = time.monotonic()
    compiled, loss, norm = _update(recipe, placement)
    text = f"compiled in {compiled - began:.1f} s, loss {loss:.4f}, gradient norm {norm:.4f}"
    if not (math.isfinite(loss) and math.isfinite(norm) and norm > 0):
        return [fail("step", text, "the devices compute no usable numbers: try another driver, or another host")]
    expected = _loss_alone(recipe, placement)
    if abs(loss - expected) > SAME * max(1.0, abs(expected)):
        advice = (
            "the devices compute or exchange wrong numbers: see driver and NCCL versions, and look for a faulty device"
        )
        return [fail("step", f"{text}, but {expected:.4f} on one device alone", advice)]
    return [ok("step", f"{text}; one device alone: {expected:.4f}")]


def check_collectives(placement: Placement) -> list[Finding]:
    """Sums numbers over all devices of all hosts, checks the sum, and says how long it took."""
    devices = placement.mesh.devices.size
    small = _sum_over_devices(placement, 1)
    large = _sum_over_devices(placement, (4 if placement.platform == "cpu" else 64) * MIB // 4)
    expected = devices * (devices + 1) / 2
    if not small.value == large.value == expected:
        text = f"the sum of 1 to {devices} over all devices came out as {small.value:g} and {large.value:g}"
        return [fail("collective", text, "the network between the devices corrupts data: look for a faulty host")]
    text = f"sum over {devices} devices of {_hosts()}: {1e6 * small.seconds:.0f} us for 4 bytes"
    size = large.bytes / MIB
    return [ok("collective", f"{text}, {1e3 * large.seconds:.1f} ms for {size:.0f} MiB a device")]


@dataclasses.dataclass(frozen=True)
class _Sum:
    value: float
    bytes: int
    seconds: float


def _sum_over_devices(placement: Placement, numbers: int) -> _Sum:
    """Device i (from 1) holds `numbers` times the number i; every device gets the sums."""
    mesh = placement.mesh
    shape, split = (mesh.devices.size, numbers), NamedSharding(mesh, PartitionSpec(mesh.axis_names))

    def part(index: Any) -> np.ndarray:
        rows = np.arange(*index[0].indices(shape[0]), dtype=np.float32) + 1
        return np.broadcast_to(rows[:, None], (len(rows), numbers))

    array = jax.make_array_from_callback(shape, split, part)
    total = jax.jit(lambda x: x.sum(0), out_shardings=placement.replicated())
    times = []
    for _ in range(_REPEATS + 1):
        began = time.monotonic()
        result = jax.block_until_ready(total(array))
        times.append(time.monotonic() - began)
    values = np.asarray(result.addressable_data(0))
    value = float(values[0]) if (values == values[0]).all() else math.nan
    # The first one compiles and opens connections.
    return _Sum(value, 4 * numbers, min(times[1:]))


def _hosts() -> str:
    return f"{jax.process_count()} process" + ("es" if jax.process_count() > 1 else "")


def _update(recipe: Recipe, placement: Placement) -> tuple[float, float, float]:
    """Returns when the update was compiled, its loss and its gradients' norm."""
    decoder = Decoder(_shape(placement), recipe.compute, placement)
    schedule = make_schedule(recipe.optimizer, 1)
    optimizer = make_optimizer(recipe.optimizer, schedule)
    shardings = state_shardings(decoder, optimizer, recipe.dtype, placement)
    make_state = jax.jit(lambda params: init_state(optimizer, params), out_shardings=shardings)
    state = make_state(init_params(decoder.config, 0, recipe.dtype, placement))
    batch = _placed(_batch(placement.row_shards(), _tokens(placement)), placement)
    step = jitted(make_train_step(decoder, recipe.objective, optimizer, schedule), shardings)
    compiled = step.lower(state, batch).compile()
    ready = time.monotonic()
    _, metrics = compiled(state, batch)
    return ready, float(metrics["loss"]), float(metrics["grad_norm"])


def _loss_alone(recipe: Recipe, placement: Placement) -> float:
    """Returns the loss of the same rows and weights on one device of this process."""
    alone = Placement(make_mesh(ALL_DEVICES, jax.local_devices()[:1]))
    decoder = Decoder(_shape(placement), recipe.compute, alone)
    params = init_params(decoder.config, 0, recipe.dtype, alone)
    batch = _placed(_batch(placement.row_shards(), _tokens(placement)), alone)
    norms = normalisers(recipe.objective, batch.pair_weight_RP, batch.nll_weight_RE)
    return float(jax.jit(make_eval_step(decoder, recipe.objective))(params, batch, norms)[0]["loss"])


def _shape(placement: Placement) -> ModelConfig:
    """A decoder whose heads and experts the mesh splits evenly."""
    heads, experts = placement.parts("head_share"), placement.parts("expert")
    common = dict(
        vocab_size=_VOCAB, hidden_size=256, intermediate_size=512, num_hidden_layers=1, num_attention_heads=2 * heads,
        num_key_value_heads=heads, head_dim=64, rms_norm_eps=1e-6, rope_theta=10000.0, tie_word_embeddings=True,
    )  # fmt: skip
    if experts == 1:
        return from_hf({"model_type": "qwen3", **common})
    routed = dict(num_experts=2 * experts, num_experts_per_tok=2, moe_intermediate_size=128, norm_topk_prob=True)
    return from_hf({"model_type": "qwen3_moe", **common, **routed})


def _tokens(placement: Placement) -> int:
    return _TOKENS * placement.parts("token_share")


def _batch(rows: int, tokens: int) -> RowBatch:
    """One microbatch of rows of one pair: the first half of the targets is the chosen side's."""
    batch = empty_batch((1, rows), tokens=tokens, targets=_TARGETS, terms=_TARGETS, pairs=1)
    source = np.arange(_TARGETS) * (tokens // _TARGETS)
    is_chosen = np.arange(_TARGETS) < _TARGETS // 2
    batch.tokens_RT[:] = np.random.default_rng(0).integers(0, _VOCAB, batch.tokens_RT.shape)
    batch.depth_RT[:], batch.visible_until_RT[:] = np.arange(tokens), tokens
    batch.source_RG[:], batch.target_RG[:] = source, batch.tokens_RT[..., source + 1]
    batch.ref_logp_RG[:] = -math.log(_VOCAB)
    batch.term_RE[:], batch.slot_RE[:], batch.weight_RE[:] = np.arange(_TARGETS), ~is_chosen, 1.0
    batch.nll_weight_RE[:] = is_chosen / is_chosen.sum()
    batch.pair_rejected_RP[:], batch.pair_weight_RP[:] = 1, 1.0
    return batch


def _placed(batch: RowBatch, placement: Placement) -> RowBatch:
    """Every host has all rows, and gives its devices theirs."""
    shardings: Any = batch_shardings(batch, placement)
    return RowBatch(
        *(
            jax.make_array_from_callback(x.shape, sharding, lambda index, x=x: x[index])
            for x, sharding in zip(batch, shardings, strict=True)
        )
    )
