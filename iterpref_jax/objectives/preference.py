"""The objective: per-target log-probs of a row -> segment sums -> pairs -> link -> loss and metrics.

Letters: R row, G gathered target, C completion slot, P pair.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from iterpref_jax.errors import UserError
from iterpref_jax.objectives.links import LINKS, LinkSettings, Scores, make_link
from iterpref_jax.objectives.weights import NLL_NORMS, PARTS, Recipe, find_recipe


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveSettings:
    """Recipe (which tokens), link (which loss), alpha with its normaliser for NLL(y+), and the router's loss."""

    recipe: str
    link: LinkSettings
    alpha: float
    nll_norm: str
    router_aux_loss_coef: float

    def __post_init__(self):
        recipe = find_recipe(self.recipe)
        make_link(self.link)
        if self.nll_norm not in NLL_NORMS:
            raise UserError(f"objective.nll_norm must be one of {', '.join(NLL_NORMS)}, not {self.nll_norm!r}")
        if not recipe.nll and self.nll_norm != NLL_NORMS[0]:
            raise UserError(
                f"objective.nll_norm = {self.nll_norm!r} has no effect with recipe {self.recipe!r}; "
                f"leave it at {NLL_NORMS[0]!r}"
            )
        if not recipe.has_preference and self.link.name != "sigmoid":
            raise UserError(f"objective.link.name = {self.link.name!r} has no effect with recipe {self.recipe!r}")
        if recipe.nll and self.alpha <= 0:
            raise UserError(
                f"recipe {self.recipe!r} adds alpha * NLL: objective.alpha must be above 0, got {self.alpha}"
            )
        if not 0 <= self.router_aux_loss_coef < math.inf:
            raise UserError(f"objective.router_aux_loss_coef must be at least 0, got {self.router_aux_loss_coef}")
        if not recipe.nll and self.alpha != 0:
            raise UserError(f"objective.alpha = {self.alpha} has no effect with recipe {self.recipe!r}; set it to 0")

    @property
    def weights(self) -> Recipe:
        return find_recipe(self.recipe)

    @property
    def uses_reference(self) -> bool:
        return self.weights.has_preference and LINKS[self.link.name].uses_reference


def normalisers(objective: ObjectiveSettings, pair_weight: jax.Array, nll_weight: jax.Array) -> dict[str, jax.Array]:
    """Returns the denominators of the means over a whole global batch, from its integer-like weights alone.

    Every device, row and accumulation step divides by these same numbers, so that the loss does not depend on how the
    batch is split (`pair_weight` and `nll_weight` hold all microbatches).
    """
    pairs = jnp.maximum(pair_weight.sum(), 1.0)
    tokens = jnp.maximum(nll_weight.sum(), 1.0)
    return {"pairs": pairs, "nll": tokens if objective.nll_norm == "token" else pairs}


def segment_sums(values_RG: jax.Array, slot_RG: jax.Array, slots: int) -> jax.Array:
    """Returns the sums [R, C] of values by completion slot."""
    return jax.vmap(lambda values, slot: jax.ops.segment_sum(values, slot, slots))(values_RG, slot_RG)


def pair_scores(logp_RG: jax.Array, batch: Any, slots: int, *, uses_reference: bool) -> Scores:
    """Returns the scores [R, P] of every pair of the rows (padding pairs included).

    `batch` is a `RowBatch` of one microbatch. Without a reference its log-ratios are the log-probs.
    """
    weighted = batch.weight_RG * logp_RG
    reference = batch.weight_RG * batch.ref_logp_RG if uses_reference else jnp.zeros_like(weighted)
    logps = segment_sums(weighted, batch.slot_RG, slots)
    logratios = segment_sums(weighted - reference, batch.slot_RG, slots)
    weight = segment_sums(batch.weight_RG, batch.slot_RG, slots)

    def side(pair_RP: jax.Array) -> list[jax.Array]:
        return [jnp.take_along_axis(sums, pair_RP, axis=1) for sums in (logps, logratios, weight)]

    chosen, rejected = side(batch.pair_chosen_RP), side(batch.pair_rejected_RP)
    return Scores(chosen[0], rejected[0], chosen[1], rejected[1], chosen[2], rejected[2])


def loss_and_metrics(
    objective: ObjectiveSettings, logp_RG: jax.Array, batch: Any, slots: int, norms: dict[str, jax.Array]
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns this microbatch's share of the global loss, and its shares of the metrics (sum them over microbatches).

    Metric names are TRL's; `logps/*` and `rewards/*` are sums over *weighted* tokens: under a focal recipe the rejected
    side is its focus only.
    """
    metrics: dict[str, jax.Array] = {}
    loss = jnp.zeros((), jnp.float32)
    if objective.weights.nll:
        nll = -(batch.nll_weight_RG * logp_RG).sum() / norms["nll"]
        metrics["nll_loss"] = nll
        loss += objective.alpha * nll
    if objective.weights.has_preference:
        scores = pair_scores(logp_RG, batch, slots, uses_reference=objective.uses_reference)
        weight_RP = batch.pair_weight_RP / norms["pairs"]
        preference = (make_link(objective.link)(scores) * weight_RP).sum()
        loss += preference
        metrics["preference_loss"] = preference
        metrics |= _pair_metrics(objective, scores, weight_RP)
        if objective.uses_reference:
            metrics |= _part_metrics(logp_RG, batch, slots, norms["pairs"])
    return loss, metrics | {"loss": loss}


def _pair_metrics(objective: ObjectiveSettings, scores: Scores, weight_RP: jax.Array) -> dict[str, jax.Array]:
    chosen, rejected = objective.link.beta * scores.chosen_logratios, objective.link.beta * scores.rejected_logratios
    link = LINKS[objective.link.name]
    if link.takes_means and not link.uses_reference:
        # As TRL reports SimPO and ORPO; with a reference it reports sums, also for links on means.
        chosen, rejected = (
            chosen / jnp.maximum(scores.chosen_weight, 1.0),
            rejected / jnp.maximum(scores.rejected_weight, 1.0),
        )
    values = {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": (chosen > rejected).astype(jnp.float32),
        "logps/chosen": scores.chosen_logps,
        "logps/rejected": scores.rejected_logps,
    }
    return {name: (value * weight_RP).sum() for name, value in values.items()}


def _part_metrics(logp_RG: jax.Array, batch: Any, slots: int, pairs: jax.Array) -> dict[str, jax.Array]:
    """Log-ratio sums a pair, by side and part: where the margin comes from.

    Focus tokens inside the shared prefix count as `shared`: they cancel between the sides wherever both weigh them.
    """
    chosen_slots = jax.vmap(lambda slot: jnp.zeros(slots, bool).at[slot].set(True))(
        jnp.where(batch.pair_weight_RP > 0, batch.pair_chosen_RP, slots)
    )
    is_chosen = jnp.take_along_axis(chosen_slots, batch.slot_RG, axis=1)
    ratio = batch.weight_RG * (logp_RG - batch.ref_logp_RG) / pairs
    in_focus = (batch.weight_RG != 0) & (batch.part_RG == PARTS.index("focus"))
    focus_RC = segment_sums(jnp.where(in_focus, logp_RG - batch.ref_logp_RG, 0.0), batch.slot_RG, slots)
    chosen, rejected = (
        jnp.take_along_axis(focus_RC, pair, axis=1) for pair in (batch.pair_chosen_RP, batch.pair_rejected_RP)
    )
    # Like for like, D+ against D- where the sides differ: `rewards/*` of a focal recipe set all of y+ against D-, so
    # that anything that raises likelihood at large raises them too.
    focus = {
        "focus/margins": ((chosen - rejected) * batch.pair_weight_RP).sum() / pairs,
        "focus/accuracies": ((chosen > rejected) * batch.pair_weight_RP).sum() / pairs,
    }
    return focus | {
        f"logratios/{side}_{part}": (ratio * where * (batch.part_RG == number)).sum()
        for side, where in (("chosen", is_chosen), ("rejected", ~is_chosen))
        for number, part in enumerate(PARTS)
    }
