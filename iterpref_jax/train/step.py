"""The step: rows in, update out. `train`, `plan` and `benchmarks` all call `make_train_step`.

Letters: A microbatch, R row, T token, G gathered target, C completion slot, P pair, D embed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from iterpref_jax.data.batch import DIMS, RowBatch
from iterpref_jax.models.decoder import Decoder
from iterpref_jax.models.experts import load_balance
from iterpref_jax.models.lora import joined, parted
from iterpref_jax.models.transformer import Params, abstract_params, param_shardings
from iterpref_jax.objectives.preference import (
    ObjectiveSettings,
    loss_and_metrics,
    mean_entropy,
    normalisers,
    pair_values,
    used_targets,
)
from iterpref_jax.parallel.rules import Placement
from iterpref_jax.train.gradients import Metrics, float32, gradients, microbatch, used
from iterpref_jax.train.optimizer import Optimizer


class TrainState(NamedTuple):
    """What an update changes, and beside it what it does not: arrays, or (in the same structure) shapes or shardings.

    `params` are all parameters or, of an adapted model, the adapters; `frozen` is then the base, which checkpoints do
    not hold.
    """

    step: Any
    params: Params
    opt_state: Any
    frozen: Params

    @property
    def all_params(self) -> Params:
        return joined(self.frozen, self.params)


def init_state(optimizer: Optimizer, params: Params) -> TrainState:
    """Returns the state before the first update."""
    trained, frozen = parted(params)
    return TrainState(jnp.zeros((), jnp.int32), trained, optimizer.init(trained), frozen)


def state_shardings(decoder: Decoder, optimizer: Optimizer, dtype: str, placement: Placement) -> TrainState:
    """Returns the sharding of every leaf of the state; see `Optimizer.shardings` for the optimizer's."""
    params, frozen = parted(param_shardings(decoder.config, dtype, placement, decoder.lora))
    replicated = placement.replicated()
    state = abstract_state(decoder, optimizer, dtype)
    return TrainState(replicated, params, optimizer.shardings(state.opt_state, params, replicated), frozen)


def abstract_state(decoder: Decoder, optimizer: Optimizer, dtype: str) -> TrainState:
    """Returns the state as `jax.ShapeDtypeStruct`s."""
    shapes = abstract_params(decoder.config, dtype, decoder.lora)
    return jax.eval_shape(lambda params: init_state(optimizer, params), shapes)


def batch_shardings(batch: RowBatch, placement: Placement) -> RowBatch:
    """Returns the shardings of a batch [A, R, ...] (arrays or shape structs)."""
    return RowBatch(*(placement.sharding(("microbatch", *dims), x.shape) for x, dims in zip(batch, DIMS, strict=True)))


def target_logps(decoder: Decoder, params: Params, micro: RowBatch) -> jax.Array:
    """Returns the log-prob [R, G] of every target of one microbatch, float32."""
    hidden_RTD = decoder.hidden(params, micro.tokens_RT, micro.depth_RT, micro.visible_until_RT)
    return _logps(decoder, params, hidden_RTD, micro)[0]


def _logps(decoder: Decoder, params: Params, hidden_RTD: jax.Array, micro: RowBatch) -> tuple[jax.Array, jax.Array]:
    """Returns the targets' log-probs, and the entropies of the distributions that they were scored by [R, G]."""
    return decoder.logps(params, hidden_RTD, micro.source_RG, micro.target_RG, used_targets(micro))


def make_loss(decoder: Decoder, objective: ObjectiveSettings) -> Callable:
    """Returns loss(params, micro, norms, sinks=None) -> (share of the global loss, shares of the metrics).

    `sinks` take the layers' gradients (`models.sinks`). The router's loss is that of each microbatch, weighted by its
    pairs: unlike everything else it depends on which pairs share one.
    """
    scored = _make_scored(decoder, objective)
    return lambda params, micro, norms, sinks=None: scored(params, micro, norms, sinks)[:2]


def _make_scored(decoder: Decoder, objective: ObjectiveSettings) -> Callable:
    """Returns what `make_loss` describes, with the log-probs of the targets [R, G] behind it."""

    def scored(
        params: Params, micro: RowBatch, norms: Metrics, sinks: Params | None
    ) -> tuple[jax.Array, Metrics, jax.Array]:
        slots = 2 * micro.pair_weight_RP.shape[-1]
        inputs = params, micro.tokens_RT, micro.depth_RT, micro.visible_until_RT, sinks
        wants_routing = objective.router_aux_loss_coef > 0
        hidden_RTD, routing = decoder.hidden_and_routing(*inputs) if wants_routing else (decoder.hidden(*inputs), None)
        logp_RG, entropy_RG = _logps(decoder, params, hidden_RTD, micro)
        total, metrics = loss_and_metrics(objective, logp_RG, micro, slots, norms)
        metrics["entropy"] = mean_entropy(entropy_RG, micro, slots, norms["pairs"])
        if routing is not None:
            balance = load_balance(routing, micro.visible_until_RT > 0, decoder.config.num_experts_per_tok)
            balance *= micro.pair_weight_RP.sum() / norms["pairs"]
            total += objective.router_aux_loss_coef * balance
            metrics |= {"loss": total, "router_aux_loss": balance}
        return total, metrics, logp_RG

    return scored


def make_train_step(
    decoder: Decoder,
    objective: ObjectiveSettings,
    optimizer: Optimizer,
    schedule: optax.Schedule,
    *,
    accumulate_dtype: str = "float32",
) -> Callable[[TrainState, RowBatch], tuple[TrainState, Metrics]]:
    """Returns the pure step (state, batch [A, R, ...]) -> (state, metrics); the caller jits it with its shardings.

    Gradients are accumulated over the microbatches that hold pairs; trailing microbatches of padding cost nothing, so
    one compiled shape serves steps of any number of rows.
    """
    loss = make_loss(decoder, objective)

    def step(state: TrainState, batch: RowBatch) -> tuple[TrainState, Metrics]:
        norms = normalisers(objective, batch.pair_weight_RP, batch.nll_weight_RE)

        def share(trained: Params, micro: RowBatch, sinks: Params | None) -> tuple[jax.Array, Metrics]:
            return loss(joined(state.frozen, trained), micro, norms, sinks)

        metrics, grads = gradients(share, state.params, batch, accumulate_dtype)
        params, opt_state = optimizer.update(grads, state.opt_state, state.params, state.step)
        metrics |= {
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": jnp.asarray(schedule(state.step)),
            # Of the new parameters: the other metrics speak of the old ones, and would show a broken update too late.
            "param_norm": optax.tree.norm(float32(params)),
        }
        return TrainState(state.step + 1, params, opt_state, state.frozen), metrics

    return step


def jitted(step: Callable, shardings: TrainState) -> Any:
    """Returns the step as it is run, or compiled for other devices: the new state takes the old one's memory."""
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))


def make_eval_step(
    decoder: Decoder, objective: ObjectiveSettings
) -> Callable[[Params, RowBatch, Metrics], tuple[Metrics, dict[str, jax.Array]]]:
    """Returns (params, batch, norms) -> shares of the metrics over a split whose denominators are `norms`, and values.

    The values, by the names of the metrics that are their means, are those of each pair [A, R, P].
    """
    scored = _make_scored(decoder, objective)

    def evaluate(params: Params, micro: RowBatch, norms: Metrics) -> tuple[Metrics, dict[str, jax.Array]]:
        _, metrics, logp_RG = scored(params, micro, norms, None)
        values = pair_values(objective, logp_RG, micro, 2 * micro.pair_weight_RP.shape[-1])
        return float32(metrics), float32(values)

    def step(params: Params, batch: RowBatch, norms: Metrics) -> tuple[Metrics, dict[str, jax.Array]]:
        def add(number: jax.Array, found: tuple[Metrics, dict[str, jax.Array]]) -> Any:
            metrics, values = evaluate(params, microbatch(batch, number), norms)
            sums = jax.tree.map(jnp.add, found[0], metrics)
            return sums, jax.tree.map(lambda all_, one: all_.at[number].set(one), found[1], values)

        shapes = jax.eval_shape(lambda b: evaluate(params, microbatch(b, 0), norms), batch)
        zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, jnp.float32), shapes)
        values = jax.tree.map(lambda zero: jnp.zeros((len(batch.tokens_RT), *zero.shape), jnp.float32), zeros[1])
        return jax.lax.fori_loop(0, used(batch), add, (zeros[0], values))

    return step


def make_score_step(decoder: Decoder) -> Callable[[Params, RowBatch], jax.Array]:
    """Returns (params, batch) -> log-probs [A, R, G] of all targets, forward only."""

    def step(params: Params, batch: RowBatch) -> jax.Array:
        def score(number: jax.Array, logps: jax.Array) -> jax.Array:
            return logps.at[number].set(target_logps(decoder, params, microbatch(batch, number)))

        return jax.lax.fori_loop(0, used(batch), score, jnp.zeros(batch.target_RG.shape, jnp.float32))

    return step
