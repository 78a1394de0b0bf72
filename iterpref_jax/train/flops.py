"""Floating-point operations of training, counted from shapes (XLA's own count sees the body of a scan only once).

*Model* FLOPs are what the mathematics needs; *executed* FLOPs add padding, recomputation and masked scores. One
multiply-add is two. Norms, rotations, softmax and the optimizer are left out, as everywhere.

An adapted model (`lora`) has no gradients of its kernels and its vocabulary. The products of the adapters themselves,
few beside those of the kernels, are left out.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from iterpref_jax.models.config import ModelConfig
from iterpref_jax.models.lora import NO_LORA, Lora
from iterpref_jax.models.remat import REMATS
from iterpref_jax.ops.kept import ATTENTION, MLP, PRODUCTS
from iterpref_jax.ops.tree_attention import query_blocks
from iterpref_jax.ops.tree_blocks import in_whole_blocks, tree_blocks

# Products of 2 H FLOPs a score. Forward: q k and p v. Backward: q k again, do v, and the gradients of q, k and v; the
# kernels make the gradient of q in a pass of its own, which computes the first two once more.
ATTENTION_FORWARD = 2
ATTENTION_BACKWARD = {"xla": 5, "cpu": 5, "tpu": 7, "gpu": 7}


@dataclasses.dataclass(frozen=True)
class Counts:
    """What a forward pass over rows computes."""

    tokens: int
    # Of all targets: each is scored among a whole vocabulary.
    logits: int
    # Pairs of a query and a key, of one head, summed over the layers.
    scores: int


def seen(config: ModelConfig, depth: np.ndarray, targets: int) -> Counts:
    """Returns the counts of the tokens at these positions of their branches, without padding.

    A causal query sees depth + 1 keys, or its layer's window if that is less.
    """
    keys = np.asarray(depth, np.int64) + 1
    windows = [kind.window or np.iinfo(np.int64).max for kind in config.layer_kinds]
    scores = sum(int(np.minimum(keys, window).sum()) for window in windows)
    return Counts(keys.size, targets * config.vocab_size, scores)


def laid_out(config: ModelConfig, *, rows: int, tokens: int, targets: int, vocab: int) -> Counts:
    """Returns what `rows` rows of `tokens` columns compute, full or not.

    `targets` is the number of used targets a row in whole tiles, and `vocab` the vocabulary in whole blocks. XLA's
    attention scores whole blocks of queries against the columns up to their end.
    """
    scores = sum((stop - start) * stop for start, stop in query_blocks(tokens))
    return Counts(rows * tokens, rows * targets * vocab, rows * scores * config.num_hidden_layers)


def walked(config: ModelConfig, visible_until_RT: Any, depth_RT: Any, *, queries: int, keys: int) -> int:
    """Returns the scores that kernels compute in these rows: blocks of queries x keys in which anything is visible."""
    until_RT, depth_RT = (in_whole_blocks(x, math.lcm(queries, keys)) for x in (visible_until_RT, depth_RT))
    windows = [kind.window for kind in config.layer_kinds]
    sides = dict(query_block=queries, key_block=keys)
    visits = {window: tree_blocks(until_RT, depth_RT, window, **sides) for window in set(windows)}
    return sum(int(visits[window].keys_RIJ.count.sum()) for window in windows) * queries * keys


def forward_flops(config: ModelConfig, counts: Counts) -> float:
    """2 x (matrix entries that a token meets) x tokens + 4 N H x scores + 2 D x logits."""
    layers = 2 * sum(_entries(config)) * counts.tokens * config.num_hidden_layers
    attention = ATTENTION_FORWARD * _score_flops(config) * counts.scores
    return float(layers + attention + 2 * config.hidden_size * counts.logits)


def model_flops(config: ModelConfig, counts: Counts, lora: Lora = NO_LORA) -> float:
    """3 x forward: every product needs two in the backward pass, and one where its kernel is frozen."""
    scores = ATTENTION_FORWARD * _score_flops(config) * counts.scores
    return 3 * scores + _passes(lora) * (forward_flops(config, counts) - scores)


def executed_flops(
    config: ModelConfig, counts: Counts, *, remat: str, attention: str, keeps_logits: bool, lora: Lora = NO_LORA
) -> float:
    """Matrix products as often as in `model_flops`, attention's as above, logits once more unless they are kept; and
    what of a layer's forward pass `remat` (of `models.remat.REMATS`) makes again, never its last product, whose result
    no gradient needs unless a norm follows it.

    `attention` is the implementation that runs ("auto" is none).
    """
    entries, kept = _entries(config), REMATS[remat]
    products, attention_products = _passes(lora) * sum(entries), ATTENTION_FORWARD + ATTENTION_BACKWARD[attention]
    if kept is not None:
        first = 2 if config.mlp == "experts" else 1
        again = entries if config.post_norms else entries[:-1]
        products += 0 if MLP in kept.keeps else entries[first]
        products += 0 if PRODUCTS in kept.keeps else sum(again) - entries[first]
        attention_products += 0 if ATTENTION in kept.keeps else ATTENTION_FORWARD
    layers = 2 * products * counts.tokens * config.num_hidden_layers
    head = (_passes(lora) + (not keeps_logits)) * 2 * config.hidden_size * counts.logits
    return float(layers + attention_products * _score_flops(config) * counts.scores + head)


def _passes(lora: Lora) -> int:
    """How often a step computes a matrix product: forward, for its input's gradient and, if trained, its kernel's."""
    return 2 if lora.rank else 3


def _entries(config: ModelConfig) -> list[int]:
    """The matrix entries that one token meets in the products of one layer, in order."""
    width, head_dim = config.hidden_size, config.head_dim
    attention = width * head_dim * 2 * (config.num_attention_heads + config.num_key_value_heads)
    outer, inner = (1 if config.mlp == "plain" else 2) * config.intermediate_size, config.intermediate_size
    if config.mlp != "experts":
        return [attention, width * outer, inner * width]
    chosen = config.num_experts_per_tok
    # The router, the chosen experts, and the mean of what they return.
    return [attention, width * config.num_experts, chosen * width * outer, chosen * inner * width, chosen * width]


def _score_flops(config: ModelConfig) -> int:
    return 2 * config.num_attention_heads * config.head_dim
