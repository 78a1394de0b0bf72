"""Held-out evaluation during training: the objective's metrics over one pass, and those of a few groups of pairs."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import jax
import numpy as np

from iterpref_jax.data.groups import Grouping, groupings
from iterpref_jax.data.packing import Plan, pass_plan, with_lengths
from iterpref_jax.data.pipeline import iterate
from iterpref_jax.data.schema import Split
from iterpref_jax.models.transformer import Params
from iterpref_jax.train.run import Run, step_source
from iterpref_jax.train.signals import Stop
from iterpref_jax.train.step import make_eval_step

# The error types that have metrics of their own, the most frequent ones; the others share one.
ERROR_TYPES = 3
GROUPED_BY = ("error_type", "focus_tokens")
GROUPED = ("rewards/accuracies", "rewards/margins", "focus/accuracies")


class HeldOut:
    """One pass over the held-out pairs of a run; planned, opened and grouped once."""

    def __init__(self, run: Run, split: Split):
        settings = run.settings
        self._run, self._split = run, split
        plan = pass_plan(run.costs(split), settings.rows, pairs_per_step=settings.train.global_batch)
        # One length: a further one seldom pays for its program in so few steps.
        plan = with_lengths(plan, settings.rows, run.placement.parts("token_share"), min(1, settings.rows.lengths))
        self._source = step_source(run, "eval", plan)
        # Every host has its rows' pairs only, and the groups need all of them.
        places = (None, run.placement.replicated())
        self._step = jax.jit(make_eval_step(run.decoder, settings.objective), out_shardings=places)

    def evaluate(self, params: Params, stop: Stop) -> dict[str, float] | None:
        """Returns the metrics over all held-out pairs, equal on all hosts; see `group_means` for those of groups.

        None if it was asked to stop before the end.
        """
        norms, plan = self._norms(), self._source.plan
        total: dict[str, float] = {}
        values: dict[str, np.ndarray] = {}
        steps = range(len(self._source))
        for step, batch in zip(steps, iterate(self._source, self._run.settings.data.pipeline, steps), strict=True):
            if stop.at(step):
                return None
            shares, found = jax.device_get(self._step(params, self._run.place(batch), norms))
            total = {name: total.get(name, 0.0) + float(value) for name, value in shares.items()}
            for name, values_ARP in found.items():
                values.setdefault(name, np.zeros(plan.pairs))
                _by_pair(values_ARP, plan, step, into=values[name])
        return total | group_means(values, self._groups)

    def _norms(self) -> dict[str, np.float32]:
        """The denominators over the whole split, so that a split's mean does not depend on its batches."""
        plan = self._source.plan
        tokens = plan.costs.chosen_terms.sum() if self._run.settings.objective.nll_norm == "token" else plan.pairs
        return {"pairs": np.float32(plan.pairs), "nll": np.float32(tokens)}

    @functools.cached_property
    def _groups(self) -> dict[str, Grouping]:
        error_types = [self._split[record].error_type for record in range(len(self._split))]
        found = groupings(self._split.index, error_types, most=ERROR_TYPES)
        return {name: found[name] for name in GROUPED_BY}


def group_means(values: Mapping[str, np.ndarray], groups: Mapping[str, Grouping]) -> dict[str, float]:
    """Returns `GROUPING/GROUP/METRIC` -> the mean of `GROUPED` values over a group's pairs, and how many it has."""
    found: dict[str, float] = {}
    grouped = [name for name in GROUPED if name in values]
    for grouping, group in groups.items() if grouped else ():
        counts = np.bincount(group.number, minlength=len(group.names))
        sums = {name: np.bincount(group.number, values[name], len(group.names)) for name in grouped}
        for number, name in enumerate(group.names):
            found[f"{grouping}/{name}/pairs"] = int(counts[number])
            found |= {f"{grouping}/{name}/{metric}": float(sums[metric][number] / counts[number]) for metric in grouped}
    return found


def _by_pair(values_ARP: np.ndarray, plan: Plan, step: int, *, into: np.ndarray) -> None:
    """Writes the values of a step's pairs where their records are; a row's pairs lie in the order of its trees."""
    for number, trees in enumerate(plan.rows(step)):
        records = [record for tree in trees for record in tree]
        into[records] = values_ARP[divmod(number, plan.rows_per_microbatch)][: len(records)]
