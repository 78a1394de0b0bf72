"""The gradients of a batch, summed over its microbatches in one place of memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import ref

from iterpref_jax.data.batch import RowBatch
from iterpref_jax.models.transformer import Params

Metrics = dict[str, jax.Array]
# (trained parameters, microbatch, sinks of the layers' gradients or None) -> (share of the loss, shares of metrics)
Loss = Callable[[Params, RowBatch, Params | None], tuple[jax.Array, Metrics]]

ACCUMULATE_DTYPES = ("float32", "bfloat16")


def gradients(loss: Loss, trained: Params, batch: RowBatch, dtype: str) -> tuple[Metrics, Params]:
    """Returns the metrics and gradients (float32) of a batch [A, R, ...]; several microbatches are summed in `dtype`.

    Microbatches of padding cost nothing. The layers' gradients, nearly all of them, are added to the sum layer by
    layer within the backward pass: beside the sum there is never a second copy.
    """
    if batch.tokens_RT.shape[0] == 1:
        (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(trained, microbatch(batch, 0), None)
        return float32(metrics), float32(grads)
    layers, rest = _parts(trained)
    shapes = jax.eval_shape(loss, trained, jax.eval_shape(lambda b: microbatch(b, 0), batch), None)[1]
    zeros = _zeros(shapes, "float32"), _zeros(layers, dtype), _zeros(rest, dtype)

    def add(number: jax.Array, sums: tuple[Metrics, Params, Params]) -> tuple[Metrics, Params, Params]:
        return _added(loss, trained, microbatch(batch, number), sums)

    metrics, layers, rest = jax.lax.fori_loop(0, used(batch), add, zeros)
    return metrics, float32(layers | rest)


def _added(
    loss: Loss, trained: Params, micro: RowBatch, sums: tuple[Metrics, Params, Params]
) -> tuple[Metrics, Params, Params]:
    metric_sums, layer_sums, rest_sums = sums
    layers, rest = _parts(trained)

    def share(rest: Params, sinks: Params) -> tuple[jax.Array, Metrics]:
        return loss(layers | rest, micro, sinks["layers"])

    # Nothing reads a sink's value.
    _, pull, metrics = jax.vjp(share, rest, jax.tree.map(jnp.zeros_like, layer_sums), has_aux=True)
    refs = jax.tree.map(jax.new_ref, layer_sums)
    # JAX exports it without a name for type checkers.
    whole = jax.ad.GradValue  # pyright: ignore[reportPrivateImportUsage]
    rest_grads, _ = pull.with_refs(jax.tree.map(lambda _: whole(), rest), refs)(jnp.ones((), jnp.float32))
    return _plus(metric_sums, metrics), jax.tree.map(ref.freeze, refs), _plus(rest_sums, rest_grads)


def used(batch: RowBatch) -> jax.Array:
    """Returns the number of microbatches that hold pairs; they come first."""
    return (batch.pair_weight_RP.sum((1, 2)) > 0).sum()


def microbatch(batch: RowBatch, number: Any) -> RowBatch:
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, number, keepdims=False), batch)


def float32(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def _parts(trained: Params) -> tuple[Params, Params]:
    """Returns the layers (stacked), and what is trained besides."""
    return {"layers": trained["layers"]}, {name: leaf for name, leaf in trained.items() if name != "layers"}


def _zeros(tree: Any, dtype: str) -> Any:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, dtype), tree)


def _plus(sums: Any, shares: Any) -> Any:
    return jax.tree.map(lambda total, share: total + share.astype(total.dtype), sums, shares)
