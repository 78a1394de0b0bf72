"""The reference pass of a run: what is missing of the cache, computed over all hosts, written by process 0."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from etils import epath

from iterpref_jax.data.batch import RowBatch
from iterpref_jax.data.pipeline import StepSource
from iterpref_jax.models.decoder import Decoder
from iterpref_jax.models.lora import base_of
from iterpref_jax.models.transformer import Params
from iterpref_jax.parallel import distributed
from iterpref_jax.progress import say
from iterpref_jax.train import alike, reference
from iterpref_jax.train.host_rows import own_rows
from iterpref_jax.train.run import Run
from iterpref_jax.train.step import make_score_step


def ensure_reference(
    run: Run, params: Params | None, should_stop: Callable[[], bool], names: Sequence[str] | None = None
) -> bool:
    """Computes what is missing of the reference cache; returns False if it was asked to stop before the end.

    `params` are the initial parameters, or None to load them if the cache turns out to be incomplete; `names` are the
    splits that are needed (None: all).
    """
    settings, path = run.settings, run.reference_path()
    per_part = settings.reference.pairs_per_part
    alike.check_shared(epath.Path(path))
    if distributed.is_main():
        per_part = reference.create_cache(path, run.reference_fingerprint(), per_part)
    per_part = distributed.from_main("reference", per_part)
    caches = {name: run.reference_cache(name, per_part) for name in names or run.splits()}
    missing = {name: _missing(name, cache) for name, cache in caches.items()}
    if not any(missing.values()):
        say(f"reference log-probs: found in {path}")
        return True
    say(f"reference log-probs: computing them into {path}")
    base = base_of(run.load_params() if params is None else params)
    # The reference of an adapted model is its base.
    score = scorer(run, dataclasses.replace(run.decoder, lora=run.decoder.lora.switched_off()), base)
    finished = all(
        reference.fill(
            cache,
            missing[name],
            part_source(run, name, per_part),
            score,
            settings.data.pipeline,
            should_stop,
            name=name,
        )
        for name, cache in caches.items()
    )
    # All hosts read what process 0 has written.
    distributed.barrier("reference log-probs")
    return finished


def _missing(name: str, cache: reference.ReferenceSplit) -> list[int]:
    """Process 0 alone looks: on NFS the others would believe for half a minute that what was missing still is."""
    return distributed.from_main(f"missing {name}", cache.missing() if distributed.is_main() else None)


def scorer(run: Run, decoder: Decoder, params: Params) -> Callable[[RowBatch], jax.Array]:
    """Returns batch -> the log-probs of its terms [A, R, E] by these parameters, over all hosts, on each of them."""
    score_targets = make_score_step(decoder)

    @functools.partial(jax.jit, out_shardings=run.placement.replicated())
    def score_terms(params: Params, batch: RowBatch) -> jax.Array:
        return jnp.take_along_axis(score_targets(params, batch), batch.term_RE, axis=-1)

    return lambda batch: score_terms(params, run.place(batch))


def part_source(run: Run, name: str, pairs_per_part: int) -> StepSource:
    """Returns the batches of one pass over a split, a part a step, without reference."""
    settings, placement, split = run.settings, run.placement, run.splits()[name]
    most = settings.reference.rows_per_microbatch or reference.LARGER * settings.rows.rows_per_microbatch
    rows = dataclasses.replace(settings.rows, rows_per_microbatch=most)
    plan = reference.even_plan(run.costs(split), rows, pairs_per_part, multiple=placement.row_shards())
    own = own_rows(placement, plan.rows_per_microbatch)
    return StepSource(split=split, plan=plan, rows=rows, weighting=settings.weighting, reference=None, own=own)
