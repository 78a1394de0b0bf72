"""Log-probs of every completion token of the held-out pairs, whatever the recipe weighs: of a policy and its reference.

The reference is the model that a run starts from; its log-probs are kept like those of training (`reference`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from iterpref_jax.errors import UserError
from iterpref_jax.models.decoder import Decoder
from iterpref_jax.models.transformer import Params
from iterpref_jax.objectives.links import LinkSettings
from iterpref_jax.objectives.preference import ObjectiveSettings
from iterpref_jax.train.reference import score_parts
from iterpref_jax.train.reference_pass import ensure_reference, part_source, scorer
from iterpref_jax.train.run import Run, RunSettings, open_run

SPLIT = "eval"
_LANES = 128


def whole_settings(settings: RunSettings, reference_path: str) -> RunSettings:
    """Returns the settings of a run that weighs all tokens of both sides, in a run's own beta."""
    link = LinkSettings(
        name="sigmoid",
        beta=settings.objective.link.beta,
        label_smoothing=0.0,
        simpo_gamma=0.0,
        dpop_lambda=0.0,
        discopop_tau=0.0,
    )
    objective = ObjectiveSettings(recipe="dpo", link=link, alpha=0.0, nll_norm="example", router_aux_loss_coef=0.0)
    reference = dataclasses.replace(settings.reference, path=reference_path)
    return dataclasses.replace(settings, objective=objective, reference=reference)


def open_whole(settings: RunSettings, workdir: str, reference_path: str) -> Run:
    """Opens a run's data and devices for a pass over all tokens of the held-out pairs.

    Focal recipes leave out most of the rejected side, so that rows may have to be longer than those of training.

    Raises:
        UserError: no held-out pairs, and what `open_run` refuses.
    """
    run = open_run(whole_settings(settings, reference_path), workdir, training=False)
    if run.eval_split is None:
        raise UserError(
            f"{settings.data.path} has no held-out pairs (build.eval_fraction drew none); name a dataset with some: "
            "--config.data.path=DIR"
        )
    longest = math.ceil(int(run.costs(run.eval_split).tokens.max()) / _LANES) * _LANES
    rows = dataclasses.replace(run.settings.rows, tokens=max(run.settings.rows.tokens, longest), targets=0, pairs=0)
    return dataclasses.replace(run, settings=dataclasses.replace(run.settings, rows=rows))


def reference_logps(run: Run, should_stop: Callable[[], bool]) -> list[np.ndarray] | None:
    """Returns the reference's log-probs of each pair's tokens, chosen side first; None if asked to stop before."""
    if not ensure_reference(run, None, should_stop, [SPLIT]):
        return None
    cache = run.reference_cache(SPLIT, run.open_reference())
    return [cache[record] for record in range(len(cache))]


def policy_logps(
    run: Run, decoder: Decoder, params: Params, should_stop: Callable[[], bool]
) -> list[np.ndarray] | None:
    """Returns a model's log-probs of each pair's tokens, chosen side first; None if asked to stop before."""
    found: dict[int, np.ndarray] = {}
    source = part_source(run, SPLIT, run.settings.reference.pairs_per_part)
    parts, score = range(source.plan.steps), scorer(run, decoder, params)

    def read(part: int, records: dict[int, np.ndarray]) -> None:
        found.update(records)

    if not score_parts(source, parts, score, run.settings.data.pipeline, should_stop, read, name=f"policy/{SPLIT}"):
        return None
    return [found[record] for record in range(source.plan.pairs)]
