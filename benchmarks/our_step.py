"""One run of ours, measured: the other half of step_vs_trl.py and layouts.py, which start it.

It opens a run as `iterpref train` does and takes the steps of its `Trainer`; only checkpoints and logs are left out.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import measured
import numpy as np
from real_pairs import BASE_CONFIG

from iterpref_jax import settings
from iterpref_jax.data import schema
from iterpref_jax.data.batch import RowBatch
from iterpref_jax.data.pipeline import iterate
from iterpref_jax.models import hf_checkpoint
from iterpref_jax.objectives.preference import used_targets
from iterpref_jax.ops.linear_logp import block_size, keeps_logits, walked_targets
from iterpref_jax.ops.tree_attention_cpu import BLOCK
from iterpref_jax.ops.tree_attention_gpu import pick_tiles
from iterpref_jax.parallel import xla_flags
from iterpref_jax.train.flops import Counts, executed_flops, laid_out, walked
from iterpref_jax.train.loop import Trainer, open_checkpoints
from iterpref_jax.train.metrics import Work, mfu
from iterpref_jax.train.reference_pass import ensure_reference
from iterpref_jax.train.run import Run, RunSettings, open_run, step_source

LANES = 128


def fitting_run(run_settings: RunSettings, workdir: str) -> Run:
    """Opens the run with rows long enough for its longest pair: layouts that share less need longer ones."""
    run = open_run(run_settings, workdir, training=False, exported=False)
    longest = int(run.costs(run.train_split).tokens.max())
    tokens = max(run_settings.rows.tokens, -(-longest // LANES) * LANES)
    rows = dataclasses.replace(run_settings.rows, tokens=tokens)
    return open_run(dataclasses.replace(run_settings, rows=rows), workdir, exported=False)


def reference_pass(run: Run, params: Any) -> float:
    """Fills the run's reference cache; returns the seconds a pair.

    The pass comes twice, into two folders: the second one finds its program compiled.
    """
    jax.config.update("jax_compilation_cache_dir", str(run.workdir / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    seconds = 0.0
    for folder in ("first", ""):
        settings = dataclasses.replace(run.settings.reference, path=folder and str(run.workdir / folder))
        one = dataclasses.replace(run, settings=dataclasses.replace(run.settings, reference=settings))
        began = time.perf_counter()
        ensure_reference(one, params, lambda: False)
        seconds = time.perf_counter() - began
    return seconds / len(run.train_split)


def opened(spec: dict[str, Any]) -> tuple[Run, Trainer]:
    """Opens the run of a child's spec, and its trainer, with XLA's flags as in training; nothing is compiled yet."""
    config = settings.load_config(BASE_CONFIG, spec["overrides"])
    xla_flags.apply(settings.read_section(config, "compile").xla_flags)
    run = fitting_run(settings.read_run(config), spec["workdir"])
    run.workdir.mkdir(parents=True)
    return run, Trainer(run, open_checkpoints(run), {})


def batches(run: Run, trainer: Trainer) -> Iterator[RowBatch]:
    """Yields the batches of all steps, as training reads them."""
    source = step_source(run, "train", trainer.plan)
    return iterate(source, run.settings.data.pipeline, range(trainer.plan.steps))


def work_of(run: Run, batch: RowBatch) -> dict[str, float]:
    """Returns what one step computes: columns hold the tokens and padding, FLOPs are the model's."""
    work = Work(batch)
    flops = work.train_flops(run.decoder.config, run.decoder.lora)
    return {"tokens": work.tokens, "columns": work.slots, "targets": work.targets, "flops": flops}


def executed_of(run: Run, batch: RowBatch) -> float:
    """Returns the FLOPs that the devices execute in one step: of its own microbatches, not of typical ones."""
    decoder, config = run.decoder, run.decoder.config
    micros = [RowBatch(*(np.asarray(x[i]) for x in batch)) for i in range(len(batch.tokens_RT))]
    micros = [micro for micro in micros if micro.pair_weight_RP.sum() > 0]
    rows, tokens = micros[0].tokens_RT.shape
    projection = decoder.projection(rows)
    block = block_size(projection.vocab, config.vocab_size)
    logits = sum(walked_targets(projection, int(used_targets(micro).sum()), micro.target_RG.size) for micro in micros)
    logits *= -(-config.vocab_size // block) * block
    if decoder.attention == "xla":
        scores = len(micros) * laid_out(config, rows=rows, tokens=tokens, targets=0, vocab=0).scores
    else:
        tile = pick_tiles(config.head_dim, 2).forward
        queries, keys = (tile.queries, tile.keys) if decoder.attention == "gpu" else (BLOCK, BLOCK)
        sides = dict(queries=queries, keys=keys)
        scores = sum(walked(config, micro.visible_until_RT, micro.depth_RT, **sides) for micro in micros)
    counts = Counts(len(micros) * rows * tokens, logits, scores)
    compute = run.settings.model.compute
    keeps = keeps_logits(projection, micros[0].target_RG.size * config.vocab_size)
    how = dict(remat=compute.remat, attention=decoder.attention, keeps_logits=keeps, lora=decoder.lora)
    return executed_flops(config, counts, **how)


def count(spec: dict[str, Any]) -> dict[str, Any]:
    """Returns the work of every step without computing anything, and the length of a row."""
    run, trainer = opened(spec)
    work = [work_of(run, batch) for batch in batches(run, trainer)]
    return _columns(work) | {"row_tokens": trainer.plan.caps.tokens}


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """Returns the work, times and losses of every step, and the peak memory of all."""
    run, trainer = opened(spec)
    params = run.load_params()
    reference_s = reference_pass(run, params) if run.settings.objective.uses_reference else 0.0
    state, stream, found = trainer.start(params), batches(run, trainer), []
    for _ in range(trainer.plan.steps):
        began = time.perf_counter()
        batch = next(stream)
        if not found:
            trainer.compile(state)
        state, metrics = trainer.step(state, run.place(batch))
        values = jax.device_get(metrics)
        seconds = time.perf_counter() - began
        work = work_of(run, batch) | {"executed_flops": executed_of(run, batch)}
        found.append({"step_s": seconds, "losses": float(values["loss"])} | work)
    device, found = jax.devices()[0], _columns(found)
    return found | {
        "mfu": mfu(sum(found["flops"][1:]) / sum(found["step_s"][1:])),
        "executed_mfu": mfu(sum(found["executed_flops"][1:]) / sum(found["step_s"][1:])),
        "reference_s_per_pair": reference_s,
        "row_tokens": trainer.plan.caps.tokens,
        "pairs": ordered_pairs(run, trainer),
        "peak_bytes": peak_bytes(device),
        "parameters": run.parameters(),
        "device_kind": device.device_kind,
        "versions": {"jax": jax.__version__},
    }


def peak_bytes(device: jax.Device) -> int:
    """Returns the most memory that was in use: of the process on a CPU, of the device elsewhere."""
    return measured.peak_host_bytes() if device.platform == "cpu" else device.memory_stats()["peak_bytes_in_use"]


def ordered_pairs(run: Run, trainer: Trainer) -> list[list[str]]:
    """Returns the names of every step's pairs, sorted within the step."""
    plan, split = trainer.plan, run.train_split
    return [sorted(split[int(record)].pair_id for record in plan.records(step)) for step in range(plan.steps)]


def prepare(spec: dict[str, Any]) -> dict[str, Any]:
    """Writes what both sides start from: the weights as a Hugging Face folder, the pairs in the order of our steps.

    Within a step pairs come by length, which changes no loss and spares a competitor that batches them padding.
    """
    run, trainer = opened(spec)
    hf_checkpoint.save(
        spec["model"],
        run.decoder.config,
        run.load_params(),
        dtype="float32",
        copy_from=None,
        max_shard_gb=5.0,
        inert={"max_position_embeddings": trainer.plan.caps.tokens},
    )
    with Path(spec["pairs"]).open("w") as out:
        for step in range(trainer.plan.steps):
            examples = [run.train_split[int(record)] for record in trainer.plan.records(step)]
            for example in sorted(examples, key=_length):
                ids = {name: getattr(example, name).tolist() for name in schema.ID_FIELDS}
                out.write(json.dumps(ids) + "\n")
    return {}


def _length(example: schema.Example) -> int:
    return len(example.prompt_ids) + max(len(example.chosen_ids), len(example.rejected_ids))


def _columns(rows: list[dict[str, Any]]) -> dict[str, list]:
    return {name: [row[name] for row in rows] for name in rows[0]}


if __name__ == "__main__":
    measured.answer(lambda spec: prepare(spec) if "pairs" in spec else measure(spec))
