"""The best mesh, remat and microbatch for a run: all are estimated, and the most promising ones compiled."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from iterpref_jax.errors import UserError
from iterpref_jax.models.remat import REMATS
from iterpref_jax.parallel.candidates import candidates
from iterpref_jax.plan.estimate import Estimate, estimate, held
from iterpref_jax.plan.planning import Planned, Target, plan_step
from iterpref_jax.plan.report import time_of
from iterpref_jax.plan.workload import Workload, with_rows
from iterpref_jax.progress import say
from iterpref_jax.train.run import RunSettings

SHOWN = 5
# Beyond so many compilations the search ends with what it has.
MOST_COMPILED = 12
# Estimates of memory may be off by so much: what is a little too large is still tried.
_SLACK = 1.2


@dataclasses.dataclass(frozen=True)
class _Candidate:
    load: Workload
    guess: Estimate

    def __str__(self) -> str:
        settings = self.load.settings
        mesh = " ".join(f"{axis}={size}" for axis, size in dataclasses.asdict(settings.mesh).items() if size > 1)
        rows, remat = settings.rows.rows_per_microbatch, settings.model.compute.remat
        return f"{mesh or 'one device'}, {rows} rows a microbatch, remat {remat}"


def search(load: Workload, target: Target) -> list[Planned]:
    """Returns the best plans that fit, the fastest first (at most `SHOWN`).

    What was found to need more memory than estimated, or less, corrects the estimates of all that are left.
    """
    left = sorted(_candidates(load, target), key=lambda each: each.guess.seconds)
    say(f"{len(left)} meshes, remats and microbatches are estimated; the most promising ones are compiled")
    found: list[Planned] = []
    factor = 1.0
    for number in range(MOST_COMPILED):
        fitting = [each for each in left if each.guess.peak * factor <= _SLACK * target.topology.usable_bytes]
        if not fitting or len(found) == SHOWN:
            break
        best = fitting[0]
        left = [each for each in left if each is not best]
        planned = plan_step(best.load, target)
        factor = _corrected(factor, planned, best)
        say(f"{number + 1}: {best}: {_outcome(planned)}")
        if planned.fits:
            found.append(planned)
            left = [each for each in left if not _is_smaller(each, best)]
    return sorted(found, key=lambda planned: planned.roofline.seconds if planned.roofline else 0.0)


def _corrected(factor: float, planned: Planned, tried: _Candidate) -> float:
    if planned.memory is None:
        return factor if planned.fits else 1.25 * factor
    # Never so much that a single odd case rules everything out.
    return min(4.0, max(0.25, planned.memory.peak / tried.guess.peak))


def _is_smaller(each: _Candidate, fitted: _Candidate) -> bool:
    """Whether it is the same mesh and remat with fewer rows: it would be no faster than what fits."""
    mine, best = each.load.settings, fitted.load.settings
    same = mine.mesh == best.mesh and mine.model.compute.remat == best.model.compute.remat
    return same and mine.rows.rows_per_microbatch < best.rows.rows_per_microbatch


def _outcome(planned: Planned) -> str:
    if planned.roofline is None:
        return "does not fit"
    return f"{time_of(planned.roofline.seconds).strip()} a step, by {planned.roofline.binding}"


def _candidates(load: Workload, target: Target) -> Iterator[_Candidate]:
    config = target.config
    for mesh in candidates(target.topology, heads=config.num_attention_heads, experts=config.num_experts):
        base = dataclasses.replace(load.settings, mesh=mesh)
        try:
            decoder = target.decoder(base)
        except UserError:
            # The model or the chips do not allow this mesh.
            continue
        placement, holds = decoder.placement, held(base, decoder)
        assert placement is not None
        if load.settings.rows.tokens % placement.parts("token_share"):
            continue
        for rows in _rows(placement.row_shards(), load.sample.plan.most_rows):
            for remat in REMATS:
                each = load.with_settings(_with_remat(with_rows(base, rows), remat))
                computed = dataclasses.replace(decoder, compute=each.settings.model.compute)
                yield _Candidate(each, estimate(each, target, computed, holds))


def _rows(shards: int, most: int) -> Iterator[int]:
    """One, two, four ... rows a shard, up to what a step holds."""
    rows = shards
    while True:
        yield rows
        if rows >= most:
            return
        rows *= 2


def _with_remat(settings: RunSettings, remat: str) -> RunSettings:
    model = settings.model
    compute = dataclasses.replace(model.compute, remat=remat)
    return dataclasses.replace(settings, model=dataclasses.replace(model, compute=compute))
