"""The reference pass of a run: what is missing of the cache, computed over all hosts, written by process 0."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from etils import epath

from iterpref_jax.data.batch import RowBatch
from iterpref_jax.data.pipeline import StepSource
from iterpref_jax.data.schema import Split
from iterpref_jax.models.lora import base_of
from iterpref_jax.models.transformer import Params
from iterpref_jax.parallel import distributed
from iterpref_jax.progress import say
from iterpref_jax.train import alike, reference
from iterpref_jax.train.host_rows import own_rows
from iterpref_jax.train.run import Run
from iterpref_jax.train.step import make_score_step


def ensure_reference(run: Run, params: Params | None, should_stop: Callable[[], bool]) -> bool:
    """Computes what is missing of the reference cache; returns False if it was asked to stop before the end.

    `params` are the initial parameters, or None to load them if the cache turns out to be incomplete.
    """
    settings, path = run.settings, run.reference_path()
    per_part = settings.reference.pairs_per_part
    alike.check_shared(epath.Path(path))
    if distributed.is_main():
        per_part = reference.create_cache(path, run.reference_fingerprint(), per_part)
    per_part = distributed.from_main("reference", per_part)
    caches = {name: run.reference_cache(name, per_part) for name in run.splits()}
    missing = {name: distributed.from_main(f"missing {name}", cache.missing()) for name, cache in caches.items()}
    if not any(missing.values()):
        say(f"reference log-probs: found in {path}")
        return True
    say(f"reference log-probs: computing them into {path}")
    score = _scorer(run, run.load_params() if params is None else params)
    finished = all(
        reference.fill(
            caches[name],
            missing[name],
            _source(run, split, per_part),
            score,
            settings.data.pipeline,
            should_stop,
            name=name,
        )
        for name, split in run.splits().items()
    )
    # All hosts read what process 0 has written.
    distributed.barrier("reference log-probs")
    return finished


def _scorer(run: Run, params: Params) -> Callable[[RowBatch], jax.Array]:
    """Returns batch -> the log-probs of its terms [A, R, E], over all hosts, on each of them."""
    # The reference of an adapted model is its base.
    base = base_of(params)
    score_targets = make_score_step(dataclasses.replace(run.decoder, lora=run.decoder.lora.switched_off()))

    @functools.partial(jax.jit, out_shardings=run.placement.replicated())
    def score_terms(params: Params, batch: RowBatch) -> jax.Array:
        return jnp.take_along_axis(score_targets(params, batch), batch.term_RE, axis=-1)

    return lambda batch: score_terms(base, run.place(batch))


def _source(run: Run, split: Split, pairs_per_part: int) -> StepSource:
    settings, placement = run.settings, run.placement
    most = settings.reference.rows_per_microbatch or reference.LARGER * settings.rows.rows_per_microbatch
    rows = dataclasses.replace(settings.rows, rows_per_microbatch=most)
    plan = reference.even_plan(run.costs(split), rows, pairs_per_part, multiple=placement.row_shards())
    own = own_rows(placement, plan.rows_per_microbatch)
    return StepSource(split=split, plan=plan, rows=rows, weighting=settings.weighting, reference=None, own=own)
