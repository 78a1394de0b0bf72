"""The objective: log-probs of a row's targets -> terms -> segment sums -> pairs -> link -> loss and metrics.

Letters: R row, G gathered target, E term, C completion slot, P pair.
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
        for field, unused in ("name", "sigmoid"), ("label_smoothing", 0):
            value = getattr(self.link, field)
            if not recipe.has_preference and value != unused:
                raise UserError(
                    f"objective.link.{field} = {value!r} has no effect with recipe {self.recipe!r}; "
                    f"leave it at {unused!r}"
                )
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


def of_terms(values_RG: jax.Array, batch: Any) -> jax.Array:
    """Returns the values [R, E] of the targets that the terms use."""
    return jnp.take_along_axis(values_RG, batch.term_RE, axis=1)


def used_terms(batch: Any) -> Any:
    """Returns which terms have a weight in one of the two sums; `batch` may hold NumPy arrays."""
    return (batch.weight_RE != 0) | (batch.nll_weight_RE != 0)


def used_targets(batch: Any) -> jax.Array:
    """Returns which targets [R, G] a term with a weight uses."""
    rows = jnp.arange(len(batch.term_RE))[:, None]
    return jnp.zeros(batch.target_RG.shape, bool).at[rows, batch.term_RE].max(used_terms(batch))


def segment_sums(values_RE: jax.Array, slot_RE: jax.Array, slots: int) -> jax.Array:
    """Returns the sums [R, C] of values by completion slot."""
    return jax.vmap(lambda values, slot: jax.ops.segment_sum(values, slot, slots))(values_RE, slot_RE)


def pair_scores(logp_RE: jax.Array, batch: Any, slots: int, *, uses_reference: bool) -> Scores:
    """Returns the scores [R, P] of every pair of the rows (padding pairs included).

    `batch` is a `RowBatch` of one microbatch. Without a reference its log-ratios are the log-probs.
    """
    weighted = batch.weight_RE * logp_RE
    reference = batch.weight_RE * of_terms(batch.ref_logp_RG, batch) if uses_reference else jnp.zeros_like(weighted)
    logps = segment_sums(weighted, batch.slot_RE, slots)
    logratios = segment_sums(weighted - reference, batch.slot_RE, slots)
    weight = segment_sums(batch.weight_RE, batch.slot_RE, slots)

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
    logp_RE = of_terms(logp_RG, batch)
    if objective.weights.nll:
        nll = -(batch.nll_weight_RE * logp_RE).sum() / norms["nll"]
        metrics["nll_loss"] = nll
        loss += objective.alpha * nll
    if objective.weights.has_preference:
        scores = pair_scores(logp_RE, batch, slots, uses_reference=objective.uses_reference)
        weight_RP = batch.pair_weight_RP / norms["pairs"]
        preference = (make_link(objective.link)(scores) * weight_RP).sum()
        loss += preference
        metrics["preference_loss"] = preference
        values = pair_values(objective, logp_RG, batch, slots)
        metrics |= {name: (value_RP * weight_RP).sum() for name, value_RP in values.items()}
        if objective.uses_reference:
            metrics |= _part_metrics(logp_RE, batch, slots, norms["pairs"])
    return loss, metrics | {"loss": loss}


def pair_values(objective: ObjectiveSettings, logp_RG: jax.Array, batch: Any, slots: int) -> dict[str, jax.Array]:
    """Returns what the metrics of pairs are means of, [R, P] (padding pairs included); nothing without preference."""
    if not objective.weights.has_preference:
        return {}
    logp_RE = of_terms(logp_RG, batch)
    scores = pair_scores(logp_RE, batch, slots, uses_reference=objective.uses_reference)
    values = _reward_values(objective, scores)
    return values | _focus_values(logp_RE, batch, slots) if objective.uses_reference else values


def mean_entropy(entropy_RG: jax.Array, batch: Any, slots: int, pairs: jax.Array) -> jax.Array:
    """Returns this microbatch's share of the entropy (nats): the mean over each pair, then over pairs."""
    is_used = used_terms(batch)
    sums_RC = segment_sums(jnp.where(is_used, of_terms(entropy_RG, batch), 0.0), batch.slot_RE, slots)
    counts_RC = segment_sums(is_used.astype(jnp.float32), batch.slot_RE, slots)

    def of_pairs(values_RC: jax.Array) -> jax.Array:
        sides = batch.pair_chosen_RP, batch.pair_rejected_RP
        chosen, rejected = (jnp.take_along_axis(values_RC, side, axis=1) for side in sides)
        return chosen + rejected

    means_RP = of_pairs(sums_RC) / jnp.maximum(of_pairs(counts_RC), 1.0)
    return (means_RP * batch.pair_weight_RP).sum() / pairs


def _reward_values(objective: ObjectiveSettings, scores: Scores) -> dict[str, jax.Array]:
    chosen, rejected = objective.link.beta * scores.chosen_logratios, objective.link.beta * scores.rejected_logratios
    link = LINKS[objective.link.name]
    if link.takes_means and not link.uses_reference:
        # As TRL reports SimPO and ORPO; with a reference it reports sums, also for links on means.
        chosen, rejected = (
            chosen / jnp.maximum(scores.chosen_weight, 1.0),
            rejected / jnp.maximum(scores.rejected_weight, 1.0),
        )
    return {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": (chosen > rejected).astype(jnp.float32),
        "logps/chosen": scores.chosen_logps,
        "logps/rejected": scores.rejected_logps,
    }


def _focus_values(logp_RE: jax.Array, batch: Any, slots: int) -> dict[str, jax.Array]:
    """Like for like, D+ against D- where the sides differ.

    `rewards/*` of a focal recipe set all of y+ against D-, so that anything that raises likelihood at large raises them
    too.
    """
    logratio_RE = logp_RE - of_terms(batch.ref_logp_RG, batch)
    in_focus = (batch.weight_RE != 0) & (batch.part_RE == PARTS.index("focus"))
    focus_RC = segment_sums(jnp.where(in_focus, logratio_RE, 0.0), batch.slot_RE, slots)
    chosen, rejected = (
        jnp.take_along_axis(focus_RC, pair, axis=1) for pair in (batch.pair_chosen_RP, batch.pair_rejected_RP)
    )
    return {"focus/margins": chosen - rejected, "focus/accuracies": (chosen > rejected).astype(jnp.float32)}


def _part_metrics(logp_RE: jax.Array, batch: Any, slots: int, pairs: jax.Array) -> dict[str, jax.Array]:
    """Log-ratio sums a pair, by side and part: where the margin comes from.

    Focus tokens inside the shared prefix count as `shared`: they cancel between the sides wherever both weigh them.
    """
    chosen_slots = jax.vmap(lambda slot: jnp.zeros(slots, bool).at[slot].set(True))(
        jnp.where(batch.pair_weight_RP > 0, batch.pair_chosen_RP, slots)
    )
    is_chosen = jnp.take_along_axis(chosen_slots, batch.slot_RE, axis=1)
    logratio_RE = logp_RE - of_terms(batch.ref_logp_RG, batch)
    ratio = batch.weight_RE * logratio_RE / pairs
    return {
        f"logratios/{side}_{part}": (ratio * where * (batch.part_RE == number)).sum()
        for side, where in (("chosen", is_chosen), ("rejected", ~is_chosen))
        for number, part in enumerate(PARTS)
    }
