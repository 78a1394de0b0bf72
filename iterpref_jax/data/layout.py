"""From a pair to a tree of tokens: what is shared, truncated and gathered. The idea is in the design's focal compute.

    separate   [prompt | chosen] [prompt | rejected]
    shared     [prompt | common | chosen tail | rejected tail]     in preorder: a subtree is one interval of columns

With truncation a completion keeps only the columns that predict a weighted token or that such a column attends to:
everything from the last weighted token on is left out, exactly. A side without any weighted token takes no column.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from iterpref_jax.data.batch import RowBatch
from iterpref_jax.data.schema import Example, Index, common_prefix
from iterpref_jax.errors import UserError, did_you_mean
from iterpref_jax.objectives.weights import PARTS, Recipe, Selection, draws_all, pair_weights

LAYOUTS = ("separate", "shared")
SHARED, FOCUS, REST = range(len(PARTS))
CHOSEN, REJECTED = range(2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowSettings:
    """The layout and the caps of a row: `tokens` T, `targets` G and `pairs` P (0: chosen from the data)."""

    layout: str
    truncate: bool
    tokens: int
    targets: int
    pairs: int
    rows_per_microbatch: int

    def __post_init__(self):
        if self.layout not in LAYOUTS:
            raise UserError(
                f"rows.layout must be one of {LAYOUTS}, not {self.layout!r}{did_you_mean(self.layout, LAYOUTS)}"
            )
        if min(self.tokens, self.rows_per_microbatch) < 1 or min(self.targets, self.pairs) < 0:
            raise UserError(
                "rows.tokens and rows.rows_per_microbatch must be at least 1, rows.targets and rows.pairs at least 0"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weighting:
    """What a layout needs of the objective: the recipe, the seed of `hybrid`, and the NLL normaliser."""

    recipe: Recipe
    seed: int
    nll_norm: str


class Tree(NamedTuple):
    """One pair laid out: columns [t] relative to the tree's start, and targets [g], chosen side first, in order."""

    tokens: np.ndarray
    depth: np.ndarray
    visible_until: np.ndarray
    source: np.ndarray
    target: np.ndarray
    side: np.ndarray
    weight: np.ndarray
    nll_weight: np.ndarray
    part: np.ndarray


class Costs(NamedTuple):
    """Columns and targets that each record takes in a row, and how many of its targets are chosen ones; int64 [N]."""

    tokens: np.ndarray
    targets: np.ndarray
    chosen_targets: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Side:
    """One completion: its tokens, the positions that are targets, and the number of its tokens that become columns."""

    ids: np.ndarray
    targets: np.ndarray
    columns: int

    @property
    def present(self) -> bool:
        return self.targets.size > 0


def lay_out(example: Example, record: int, rows: RowSettings, weighting: Weighting) -> Tree:
    """Returns the tree of one pair; `record` is its number in the dataset (it seeds `hybrid`)."""
    weights = pair_weights(
        weighting.recipe,
        example.chosen_focus,
        example.rejected_focus,
        record=record,
        seed=weighting.seed,
        nll_norm=weighting.nll_norm,
    )
    chosen = _side(example.chosen_ids, (weights.chosen != 0) | (weights.nll != 0), rows.truncate)
    rejected = _side(example.rejected_ids, weights.rejected != 0, rows.truncate)
    common = common_prefix(example.chosen_ids, example.rejected_ids)
    trunk, starts, columns = _arrange(example.prompt_ids, chosen, rejected, common, rows.layout)
    sources = [_sources(side, start, trunk) for side, start in zip((chosen, rejected), starts, strict=True)]
    nothing = np.zeros(rejected.targets.size, np.float32)
    return Tree(
        *columns,
        source=np.concatenate(sources),
        target=np.concatenate([chosen.ids[chosen.targets], rejected.ids[rejected.targets]]),
        side=np.repeat(np.array([CHOSEN, REJECTED]), [chosen.targets.size, rejected.targets.size]),
        weight=np.concatenate([weights.chosen[chosen.targets], weights.rejected[rejected.targets]]),
        nll_weight=np.concatenate([weights.nll[chosen.targets], nothing]),
        part=np.concatenate(
            [
                _parts(chosen.targets, example.chosen_focus, common),
                _parts(rejected.targets, example.rejected_focus, common),
            ]
        ),
    )


def costs(index: Index, rows: RowSettings, weighting: Weighting) -> Costs:
    """Returns what `lay_out` would take for every record, from the index alone (no record is read)."""
    recipe = weighting.recipe
    chosen_selection = "all" if recipe.nll else recipe.chosen
    chosen_targets, chosen_end = _counts(chosen_selection, index, "chosen")
    rejected_targets, rejected_end = _counts(recipe.rejected, index, "rejected")
    if recipe.rejected == "hybrid":
        in_full = draws_all(np.arange(len(index)), weighting.seed)
        full, focal = _counts("all", index, "rejected"), _counts("focus", index, "rejected")
        rejected_targets, rejected_end = (np.where(in_full, a, b) for a, b in zip(full, focal, strict=True))
    chosen = _columns(chosen_end, index.chosen_len, rows.truncate)
    rejected = _columns(rejected_end, index.rejected_len, rows.truncate)
    prompts = (chosen_targets > 0).astype(np.int64) + (rejected_targets > 0)
    tokens = prompts * index.prompt_len + chosen + rejected
    if rows.layout == "shared":
        both = prompts == 2
        tokens -= both * (index.prompt_len + np.minimum(index.common_len, np.minimum(chosen, rejected)))
    return Costs(tokens, chosen_targets + rejected_targets, chosen_targets)


def place(batch: RowBatch, row: tuple[int, ...], trees: list[Tree], ref_logps: list[np.ndarray | None]) -> None:
    """Writes trees side by side into one row of `batch`, in place; `row` indexes the leading dims.

    `ref_logps` holds each tree's reference log-probs in the order of its targets, or None (no reference: zeros).
    """
    column = target = 0
    for number, (tree, ref_logp) in enumerate(zip(trees, ref_logps, strict=True)):
        columns = (*row, slice(column, column + len(tree.tokens)))
        batch.tokens_RT[columns] = tree.tokens
        batch.depth_RT[columns] = tree.depth
        batch.visible_until_RT[columns] = tree.visible_until + column
        targets = (*row, slice(target, target + len(tree.target)))
        batch.source_RG[targets] = tree.source + column
        batch.target_RG[targets] = tree.target
        batch.slot_RG[targets] = 2 * number + tree.side
        batch.weight_RG[targets] = tree.weight
        batch.nll_weight_RG[targets] = tree.nll_weight
        batch.part_RG[targets] = tree.part
        if ref_logp is not None:
            batch.ref_logp_RG[targets] = ref_logp
        batch.pair_chosen_RP[(*row, number)] = 2 * number + CHOSEN
        batch.pair_rejected_RP[(*row, number)] = 2 * number + REJECTED
        batch.pair_weight_RP[(*row, number)] = 1.0
        column, target = column + len(tree.tokens), target + len(tree.target)


def _side(ids: np.ndarray, is_target: np.ndarray, truncate: bool) -> _Side:
    targets = np.flatnonzero(is_target)
    if not targets.size:
        return _Side(ids, targets, 0)
    return _Side(ids, targets, int(targets[-1]) if truncate else len(ids))


def _arrange(prompt: np.ndarray, chosen: _Side, rejected: _Side, common: int, layout: str):
    """Returns the trunk's length, each side's (start of its tail, its tokens in the trunk), and the column arrays."""
    shared = layout == "shared" and chosen.present and rejected.present
    if shared:
        kept = min(common, chosen.columns, rejected.columns)
        trunk = np.concatenate([prompt, chosen.ids[:kept]])
        tails = [chosen.ids[kept : chosen.columns], rejected.ids[kept : rejected.columns]]
        total = len(trunk) + len(tails[0]) + len(tails[1])
        ends = [total, len(trunk) + len(tails[0]), total]
        depths = [np.arange(len(trunk)), *(len(trunk) + np.arange(len(tail)) for tail in tails)]
        starts = [(len(trunk) - kept, len(trunk), kept), (len(trunk) - kept, len(trunk) + len(tails[0]), kept)]
        return trunk, starts, _columns_of([trunk, *tails], depths, ends)
    pieces, depths, ends, starts, begin = [], [], [], [], 0
    for side in (chosen, rejected):
        piece = np.concatenate([prompt, side.ids[: side.columns]]) if side.present else np.zeros(0, np.int32)
        starts.append((begin + len(prompt), begin + len(prompt), 0))
        begin += len(piece)
        pieces.append(piece)
        depths.append(np.arange(len(piece)))
        ends.append(begin)
    return prompt, starts, _columns_of(pieces, depths, ends)


def _columns_of(pieces: list[np.ndarray], depths: list[np.ndarray], ends: list[int]):
    until = np.repeat(np.array(ends, np.int32), [len(piece) for piece in pieces])
    return np.concatenate(pieces).astype(np.int32), np.concatenate(depths).astype(np.int32), until


def _sources(side: _Side, start: tuple[int, int, int], trunk: np.ndarray) -> np.ndarray:
    """The column of the token before each target: in the trunk up to the branch point, then in the side's own tail."""
    first, tail, kept = start
    before = side.targets - 1
    return np.where(before < kept, first + before, tail + before - kept).astype(np.int32)


def _parts(targets: np.ndarray, focus: np.ndarray, common: int) -> np.ndarray:
    return np.where(targets < common, SHARED, np.where(focus[targets] != 0, FOCUS, REST)).astype(np.int32)


def _counts(selection: Selection, index: Index, side: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the number of targets and the end of the last one, for every record."""
    if selection == "focus":
        names = (f"{side}_focus_count", f"{side}_focus_end")
    else:
        names = (f"{side}_len", f"{side}_len")
    used = int(selection != "none")
    return tuple(getattr(index, name).astype(np.int64) * used for name in names)


def _columns(end: np.ndarray, length: np.ndarray, truncate: bool) -> np.ndarray:
    return np.where(end > 0, end - 1 if truncate else length, 0)
