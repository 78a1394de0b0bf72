"""Preference pairs from debugging histories: the final, passing version against an earlier, failing one."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Iterator
from typing import Literal, get_args

from iterpref_jax.codeflow import records
from iterpref_jax.codeflow.draws import draw
from iterpref_jax.errors import UserError, did_you_mean

Choose = Literal["random", "first", "last", "all"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairSettings:
    """Which earlier versions become the rejected side.

    `choose`: "random" (the paper's), "first" or "last" failing version, one pair per trajectory, or "all" of them.
    `max_per_task`: at most so many pairs of one task, over all its trajectories, drawn by `seed`; 0 = no limit.
    """

    choose: Choose
    max_per_task: int
    seed: int

    def __post_init__(self) -> None:
        known = get_args(Choose)
        if self.choose not in known:
            raise UserError(
                f"choose must be one of {', '.join(known)}, not {self.choose!r}{did_you_mean(self.choose, known)}"
            )
        if self.max_per_task < 0:
            raise UserError(f"max_per_task must be 0 (no limit) or more, not {self.max_per_task}")


def make_pairs(
    trajectories: Iterable[records.Trajectory],
    settings: PairSettings,
    skipped: collections.Counter[str] | None = None,
) -> Iterator[records.Pair]:
    """Yields the pairs of `trajectories` in their order; `skipped` counts what gave none.

    `skipped["chosen_fails"]` and `["no_failing_version"]` count trajectories, `["rejected_passes"]` counts earlier
    versions that pass, `["over_task_limit"]` pairs beyond `max_per_task`. Which pairs come out does not depend on the
    order of `trajectories`.
    """
    skipped = collections.Counter() if skipped is None else skipped
    pairs = (pair for trajectory in trajectories for pair in _pairs_of(trajectory, settings, skipped))
    if not settings.max_per_task:
        yield from pairs
        return
    pairs = list(pairs)
    kept = _within_limit(pairs, settings)
    if len(kept) < len(pairs):
        skipped["over_task_limit"] += len(pairs) - len(kept)
    yield from (pair for pair in pairs if pair.pair_id in kept)


def _pairs_of(
    trajectory: records.Trajectory, settings: PairSettings, skipped: collections.Counter[str]
) -> Iterator[records.Pair]:
    *earlier, final = trajectory.versions
    if not final.passed:
        skipped["chosen_fails"] += 1
        return
    failing = [index for index, version in enumerate(earlier) if not version.passed]
    # `+= 0` would put a name without a case into the report.
    if len(failing) < len(earlier):
        skipped["rejected_passes"] += len(earlier) - len(failing)
    if not failing:
        skipped["no_failing_version"] += 1
        return
    for index in _chosen_indices(failing, trajectory.task_id, settings):
        yield _pair(trajectory, index)


def _chosen_indices(failing: list[int], task_id: str, settings: PairSettings) -> list[int]:
    if settings.choose == "first":
        return failing[:1]
    if settings.choose == "last":
        return failing[-1:]
    if settings.choose == "all":
        return failing
    return [failing[draw(settings.seed, "version", task_id) % len(failing)]]


def _pair(trajectory: records.Trajectory, index: int) -> records.Pair:
    rejected = trajectory.versions[index]
    return records.Pair(
        pair_id=f"{trajectory.task_id}#v{index}",
        task=trajectory.task,
        prompt=trajectory.instruction,
        chosen=trajectory.versions[-1].code,
        rejected=rejected.code,
        form="code",
        meta={
            "trajectory": trajectory.task_id,
            "source": trajectory.source,
            "version": index,
            "versions": len(trajectory.versions),
            "error_type": rejected.error_type,
        },
    )


def _within_limit(pairs: list[records.Pair], settings: PairSettings) -> set[str]:
    by_task: dict[str, list[str]] = collections.defaultdict(list)
    for pair in pairs:
        by_task[pair.task].append(pair.pair_id)
    kept: set[str] = set()
    for names in by_task.values():
        names.sort(key=lambda name: (draw(settings.seed, "limit", name), name))
        kept.update(names[: settings.max_per_task])
    return kept
