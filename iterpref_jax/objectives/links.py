"""Links: scalar losses of a pair's two scores. Names are TRL's where TRL has the loss.

Letter: P pair. Every function maps `Scores` [P] to losses [P]; all values are float32 natural-log units.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from iterpref_jax.errors import UserError, did_you_mean


class Scores(NamedTuple):
    """Weighted sums over each side of P pairs: log-probs, log-ratios against the reference, and weights."""

    chosen_logps: jax.Array
    rejected_logps: jax.Array
    chosen_logratios: jax.Array
    rejected_logratios: jax.Array
    chosen_weight: jax.Array
    rejected_weight: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinkSettings:
    """The link's name and its numbers; a number that the link does not read must stay at 0."""

    name: str
    beta: float
    label_smoothing: float
    simpo_gamma: float
    dpop_lambda: float
    discopop_tau: float


LinkFn = Callable[[Scores, LinkSettings], jax.Array]


@dataclasses.dataclass(frozen=True)
class Link:
    """A loss function, whether it needs reference log-probs or takes means, and which optional settings it reads."""

    loss: LinkFn
    uses_reference: bool = True
    takes_means: bool = False
    reads: tuple[str, ...] = ()


def _smoothed(logits: jax.Array, settings: LinkSettings) -> jax.Array:
    """-(1 - e) log sigmoid(x) - e log sigmoid(-x): cDPO's conservative form of the logistic loss."""
    e = settings.label_smoothing
    return -(1 - e) * jax.nn.log_sigmoid(logits) - e * jax.nn.log_sigmoid(-logits)


def _delta(scores: Scores) -> jax.Array:
    return scores.chosen_logratios - scores.rejected_logratios


def _mean_delta(chosen: jax.Array, rejected: jax.Array, scores: Scores) -> jax.Array:
    """Difference of means over each side's weights (under focus: over the focus tokens)."""
    return chosen / jnp.maximum(scores.chosen_weight, 1.0) - rejected / jnp.maximum(scores.rejected_weight, 1.0)


def sigmoid(scores: Scores, settings: LinkSettings) -> jax.Array:
    """DPO (arXiv 2305.18290, eq. 7), with cDPO's label smoothing."""
    return _smoothed(settings.beta * _delta(scores), settings)


def hinge(scores: Scores, settings: LinkSettings) -> jax.Array:
    """SLiC's hinge on the DPO margin (arXiv 2305.10425)."""
    return jax.nn.relu(1 - settings.beta * _delta(scores))


def ipo(scores: Scores, settings: LinkSettings) -> jax.Array:
    """IPO (arXiv 2310.12036, eq. 17) on per-token means, as its authors advise."""
    delta = _mean_delta(scores.chosen_logratios, scores.rejected_logratios, scores)
    return jnp.square(delta - 1 / (2 * settings.beta))


def robust(scores: Scores, settings: LinkSettings) -> jax.Array:
    """Robust DPO (arXiv 2403.00409): unbiased under a label flip rate of `label_smoothing` < 0.5."""
    e, logits = settings.label_smoothing, settings.beta * _delta(scores)
    return (-(1 - e) * jax.nn.log_sigmoid(logits) + e * jax.nn.log_sigmoid(-logits)) / (1 - 2 * e)


def exo_pair(scores: Scores, settings: LinkSettings) -> jax.Array:
    """EXO for K = 2 (arXiv 2402.00856, eq. 16); `label_smoothing` is its epsilon and must be above 0."""
    e, logits = settings.label_smoothing, settings.beta * _delta(scores)
    log_win, log_lose = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    return jnp.exp(log_win) * (log_win - jnp.log1p(-e)) + jnp.exp(log_lose) * (log_lose - jnp.log(e))


def nca_pair(scores: Scores, settings: LinkSettings) -> jax.Array:
    """NCA for pairs (arXiv 2402.05369)."""
    chosen, rejected = settings.beta * scores.chosen_logratios, settings.beta * scores.rejected_logratios
    return -jax.nn.log_sigmoid(chosen) - 0.5 * jax.nn.log_sigmoid(-chosen) - 0.5 * jax.nn.log_sigmoid(-rejected)


def bco_pair(scores: Scores, settings: LinkSettings) -> jax.Array:
    """BCO for pairs without a reward shift, as TRL computes it (arXiv 2404.04656)."""
    chosen, rejected = settings.beta * scores.chosen_logratios, settings.beta * scores.rejected_logratios
    return -jax.nn.log_sigmoid(chosen) - jax.nn.log_sigmoid(-rejected)


def sppo_hard(scores: Scores, settings: LinkSettings) -> jax.Array:
    """SPPO with hard wins (arXiv 2405.00675, eq. 4.7 with P = 1 and 0)."""
    half = 0.5 / settings.beta
    return jnp.square(scores.chosen_logratios - half) + jnp.square(scores.rejected_logratios + half)


def apo_zero(scores: Scores, settings: LinkSettings) -> jax.Array:
    """APO-zero (arXiv 2408.06266, eq. 7)."""
    chosen, rejected = settings.beta * scores.chosen_logratios, settings.beta * scores.rejected_logratios
    return 1 - jax.nn.sigmoid(chosen) + jax.nn.sigmoid(rejected)


def apo_down(scores: Scores, settings: LinkSettings) -> jax.Array:
    """APO-down (arXiv 2408.06266, eq. 8)."""
    return jax.nn.sigmoid(settings.beta * scores.chosen_logratios) + 1 - jax.nn.sigmoid(settings.beta * _delta(scores))


def discopop(scores: Scores, settings: LinkSettings) -> jax.Array:
    """DiscoPOP's log-ratio modulated loss (arXiv 2406.08414, eq. 5)."""
    logits = settings.beta * _delta(scores)
    share = jax.nn.sigmoid(logits / settings.discopop_tau)
    # exp(-logits) * share, one of which leaves float32's range where their product does not.
    exponential = jnp.exp(jax.nn.log_sigmoid(logits / settings.discopop_tau) - logits)
    return -jax.nn.log_sigmoid(logits) * (1 - share) + exponential


def sigmoid_norm(scores: Scores, settings: LinkSettings) -> jax.Array:
    """The logistic loss on per-token means."""
    return _smoothed(settings.beta * _mean_delta(scores.chosen_logratios, scores.rejected_logratios, scores), settings)


def dpop(scores: Scores, settings: LinkSettings) -> jax.Array:
    """DPO-Positive (arXiv 2402.13228, eq. 3): pays when the chosen log-prob falls below the reference's."""
    fall = jax.nn.relu(-scores.chosen_logratios)
    return -jax.nn.log_sigmoid(settings.beta * (_delta(scores) - settings.dpop_lambda * fall))


def simpo(scores: Scores, settings: LinkSettings) -> jax.Array:
    """SimPO (arXiv 2405.14734, eq. 6): reference-free, per-token means, target margin `simpo_gamma`."""
    delta = _mean_delta(scores.chosen_logps, scores.rejected_logps, scores)
    return _smoothed(settings.beta * delta - settings.simpo_gamma, settings)


def cpo(scores: Scores, settings: LinkSettings) -> jax.Array:
    """CPO's preference term (arXiv 2401.08417, eq. 4): DPO with a uniform reference."""
    return _smoothed(settings.beta * (scores.chosen_logps - scores.rejected_logps), settings)


def orpo(scores: Scores, settings: LinkSettings) -> jax.Array:
    """ORPO's odds-ratio term (arXiv 2403.07691, eq. 7) on per-token means."""
    chosen = scores.chosen_logps / jnp.maximum(scores.chosen_weight, 1.0)
    rejected = scores.rejected_logps / jnp.maximum(scores.rejected_weight, 1.0)
    return -settings.beta * jax.nn.log_sigmoid(chosen - rejected - (_log_not(chosen) - _log_not(rejected)))


def _log_not(logp: jax.Array) -> jax.Array:
    """log(1 - exp(logp)), kept finite where the log-prob rounds to 0."""
    return jnp.log(-jnp.expm1(jnp.minimum(logp, -1e-7)))


LINKS: dict[str, Link] = {
    "sigmoid": Link(sigmoid, reads=("label_smoothing",)),
    "hinge": Link(hinge),
    "ipo": Link(ipo, takes_means=True),
    "robust": Link(robust, reads=("label_smoothing",)),
    "exo_pair": Link(exo_pair, reads=("label_smoothing",)),
    "nca_pair": Link(nca_pair),
    "bco_pair": Link(bco_pair),
    "sppo_hard": Link(sppo_hard),
    "apo_zero": Link(apo_zero),
    "apo_down": Link(apo_down),
    "discopop": Link(discopop, reads=("discopop_tau",)),
    "sigmoid_norm": Link(sigmoid_norm, takes_means=True, reads=("label_smoothing",)),
    "dpop": Link(dpop, reads=("dpop_lambda",)),
    "simpo": Link(simpo, uses_reference=False, takes_means=True, reads=("label_smoothing", "simpo_gamma")),
    "cpo": Link(cpo, uses_reference=False, reads=("label_smoothing",)),
    "orpo": Link(orpo, uses_reference=False, takes_means=True),
}


def make_link(settings: LinkSettings) -> Callable[[Scores], jax.Array]:
    """Returns losses [P] of scores [P] under these settings.

    Raises:
        UserError: an unknown name, a number out of range, or a number that the link would silently ignore.
    """
    _check(settings)
    loss = LINKS[settings.name].loss
    return lambda scores: loss(scores, settings)


def _check(settings: LinkSettings) -> None:
    if settings.name not in LINKS:
        hint = did_you_mean(settings.name, LINKS)
        raise UserError(f"objective.link.name {settings.name!r} is not one of {', '.join(LINKS)}{hint}")
    if settings.beta <= 0:
        raise UserError(f"objective.link.beta must be above 0, got {settings.beta}")
    reads = LINKS[settings.name].reads
    for field in ("label_smoothing", "simpo_gamma", "dpop_lambda", "discopop_tau"):
        if getattr(settings, field) and field not in reads:
            readers = ", ".join(name for name, link in LINKS.items() if field in link.reads)
            raise UserError(
                f"objective.link.{field} = {getattr(settings, field)} has no effect with link {settings.name!r} "
                f"(links that read it: {readers}); set it to 0 or choose another link"
            )
    if not 0 <= settings.label_smoothing < 0.5:
        raise UserError(f"objective.link.label_smoothing must be in [0, 0.5), got {settings.label_smoothing}")
    for name, field in (("exo_pair", "label_smoothing"), ("dpop", "dpop_lambda"), ("discopop", "discopop_tau")):
        if settings.name == name and getattr(settings, field) <= 0:
            raise UserError(f"link {name!r} needs objective.link.{field} above 0, got {getattr(settings, field)}")
