"""A mixture of experts that drops no token: tokens sorted by expert, one ragged product an expert's kernel.

Letters: R row, T token, D embed, F mlp, E expert, N token of the rows of one device, X chosen expert of a token.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from iterpref_jax.models.expert_groups import CHOICES, ROWS, through_groups
from iterpref_jax.models.layers import ACTIVATIONS, Linear, Maker
from iterpref_jax.ops.kept import MLP, PRODUCTS
from iterpref_jax.parallel.rules import Placement


class Experts(nnx.Module):
    """Each token goes through its `num_experts_per_tok` best experts, weighted by the router's softmax (float32)."""

    def __init__(self, make: Maker):
        self.config = make.config
        self.router = make.normal("embed", "expert")
        self.gate = Linear(make, "gate", ("embed",), ("mlp",), bias=False, stack=("expert",))
        self.up = Linear(make, "up", ("embed",), ("mlp",), bias=False, stack=("expert",))
        self.down = Linear(make, "down", ("mlp",), ("embed",), bias=False, stack=("expert",))

    def __call__(self, x_RTD: jax.Array, placement: Placement | None) -> tuple[jax.Array, jax.Array]:
        """Returns the outputs [R, T, D] and the router's logits [R, T, E]."""
        logits_RTE = checkpoint_name(x_RTD @ self.router[...].astype(x_RTD.dtype), PRODUCTS)
        if placement is not None:
            logits_RTE = placement.constrain(logits_RTE, CHOICES)
        probs = jax.nn.softmax(logits_RTE.astype(jnp.float32), axis=-1)
        weight_RTX, expert_RTX = jax.lax.top_k(probs, self.config.num_experts_per_tok)
        if self.config.norm_topk_prob:
            weight_RTX /= weight_RTX.sum(-1, keepdims=True)
        arrays = (x_RTD, weight_RTX.astype(x_RTD.dtype), expert_RTX)
        kernels = tuple(linear.dense(x_RTD.dtype) for linear in (self.gate, self.up, self.down))
        activation = ACTIVATIONS[self.config.hidden_act]
        run = functools.partial(_through_experts, activation)
        if placement is None:
            return run(*arrays, *kernels), logits_RTE
        if placement.parts("expert") > 1:
            return through_groups(placement, activation, *arrays, *kernels), logits_RTE
        # Sorting is local to a device's rows; the compiler cannot know that, and would sort across the mesh.
        outer, inner = ("expert", "activation_embed", "mlp"), ("expert", "mlp", "activation_embed")
        dims = [ROWS, CHOICES, CHOICES, outer, outer, inner]
        return placement.map_rows(run, (*arrays, *kernels), dims, dims[0], summed="mlp"), logits_RTE


def _through_experts(activation, x_RTD, weight_RTX, expert_RTX, gate_EDF, up_EDF, down_EFD) -> jax.Array:
    rows, tokens, choices = expert_RTX.shape
    expert = expert_RTX.reshape(-1)
    order = jnp.argsort(expert, stable=True)
    sizes = jnp.bincount(expert, length=gate_EDF.shape[0]).astype(jnp.int32)
    x = x_RTD.reshape(rows * tokens, -1)[order // choices]
    gate, up = (checkpoint_name(jax.lax.ragged_dot(x, kernel, sizes), MLP) for kernel in (gate_EDF, up_EDF))
    inner = activation(gate) * up
    y = checkpoint_name(jax.lax.ragged_dot(inner, down_EFD, sizes), PRODUCTS)
    y_NXD = jnp.zeros_like(y).at[order].set(y, unique_indices=True).reshape(rows * tokens, choices, -1)
    return jnp.einsum("nxd,nx->nd", y_NXD, weight_RTX.reshape(-1, choices)).reshape(x_RTD.shape)


def load_balance(logits_LRTE: jax.Array, is_token_RT: jax.Array, chosen: int) -> jax.Array:
    """Returns the router's load-balancing loss of Switch Transformer as `transformers` computes it, float32.

    Args:
        logits_LRTE: the router's logits of every layer.
        is_token_RT: False in padding, which does not count.
    """
    experts = logits_LRTE.shape[-1]
    probs = jax.nn.softmax(logits_LRTE.astype(jnp.float32), axis=-1)
    best = jax.lax.top_k(probs, chosen)[1]
    counted = is_token_RT.astype(jnp.float32)[None, :, :, None]
    picked = (jax.nn.one_hot(best, experts).sum(-2) * counted).sum((0, 1, 2))
    total = jnp.maximum(counted.sum() * logits_LRTE.shape[0], 1)
    return experts * jnp.sum(picked / total * ((probs * counted).sum((0, 1, 2)) / total))
