"""The contract between data and step: fixed-shape rows of packed trees, the targets to score, and what uses them.

Letters: R row, T token, G gathered target, E term, C completion slot, P pair. A pipeline's batch has one more leading
dim, the microbatch. Nothing after this contract knows which layout, recipe or packing made a row.

A target is scored once, whoever uses it: a *term* is one target's part in the sums of one completion. Both sides of a
pair may weigh a token that they share, and pairs with one chosen side weigh the same tokens of it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class RowBatch(NamedTuple):
    """Rows of packed trees. A NamedTuple is a pytree without importing JAX, which data workers do not need."""

    tokens_RT: Any  # int32, token ids; 0 in padding
    depth_RT: Any  # int32, position of the token in its own branch
    visible_until_RT: (
        Any  # int32, key column j is visible to query column i iff j <= i < visible_until[j]; 0 in padding
    )
    source_RG: Any  # int32, column whose hidden state predicts the target
    target_RG: Any  # int32, token id to score
    ref_logp_RG: Any  # float32, cached reference log-prob of the target
    term_RE: Any  # int32, the target that the term uses
    slot_RE: Any  # int32, completion slot of the term within the row
    weight_RE: Any  # float32, weight of the target in its completion's log-ratio sum; 0 in padding
    nll_weight_RE: Any  # float32, weight of the target in the NLL term; 0 outside chosen completions
    part_RE: Any  # int32, where the target lies in its completion (`objectives.weights.PARTS`); metrics only
    pair_chosen_RP: Any  # int32, slot of each pair's chosen completion
    pair_rejected_RP: Any  # int32, slot of each pair's rejected completion
    pair_weight_RP: Any  # float32, 0 = no pair


DTYPES = RowBatch._make(
    ["int32"] * 5 + ["float32"] + ["int32"] * 2 + ["float32"] * 2 + ["int32"] + ["int32"] * 2 + ["float32"]
)

# The names of the dims behind the microbatch dim, for the sharding rules.
DIMS = RowBatch._make([("row", "token")] * 3 + [("row", "target")] * 3 + [("row", "term")] * 5 + [("row", "pair")] * 3)


def empty_batch(leading: tuple[int, ...], *, tokens: int, targets: int, terms: int, pairs: int) -> RowBatch:
    """Returns a batch of padding with the given leading dims (microbatch, row)."""
    sizes = {"token": tokens, "target": targets, "term": terms, "pair": pairs}
    return RowBatch(*(np.zeros((*leading, sizes[dims[1]]), dtype) for dims, dtype in zip(DIMS, DTYPES, strict=True)))
