"""The contract between data and step: fixed-shape rows of packed trees, and the list of targets that carry loss.

Letters: R row, T token, G gathered target, C completion slot, P pair. A pipeline's batch has one more leading dim, the
microbatch. Nothing after this contract knows which layout, recipe or packing made a row.
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
    slot_RG: Any  # int32, completion slot of the target within the row
    weight_RG: Any  # float32, weight in its completion's log-ratio sum; 0 in padding
    nll_weight_RG: Any  # float32, weight in the NLL term; 0 outside chosen completions
    ref_logp_RG: Any  # float32, cached reference log-prob of the target
    part_RG: Any  # int32, where the target lies in its completion (`objectives.weights.PARTS`); metrics only
    pair_chosen_RP: Any  # int32, slot of each pair's chosen completion
    pair_rejected_RP: Any  # int32, slot of each pair's rejected completion
    pair_weight_RP: Any  # float32, 0 = no pair


DTYPES = RowBatch._make(["int32"] * 6 + ["float32"] * 3 + ["int32"] * 3 + ["float32"])

# The names of the dims behind the microbatch dim, for the sharding rules.
DIMS = RowBatch._make([("row", "token")] * 3 + [("row", "target")] * 7 + [("row", "pair")] * 3)


def empty_batch(leading: tuple[int, ...], tokens: int, targets: int, pairs: int) -> RowBatch:
    """Returns a batch of padding with the given leading dims (microbatch, row)."""
    sizes = {"token": tokens, "target": targets, "pair": pairs}
    return RowBatch(*(np.zeros((*leading, sizes[dims[1]]), dtype) for dims, dtype in zip(DIMS, DTYPES, strict=True)))
