"""From pairs to a tree of tokens: what is shared, truncated and gathered. The idea is in the design's focal compute.

    separate   [prompt | chosen] [prompt | rejected]
    shared     [prompt | common | chosen tail | rejected tail]
    tree       shared by all pairs of a step with one prompt and one chosen side: a further pair adds only its tail

With truncation a completion keeps only the columns that predict a weighted token or that such a column attends to:
everything from the last weighted token on is left out, exactly. A side without any weighted token takes no column.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from iterpref_jax.data.batch import RowBatch
from iterpref_jax.data.schema import Example, Index, common_prefix
from iterpref_jax.data.trie import preorder
from iterpref_jax.errors import UserError, did_you_mean
from iterpref_jax.objectives.weights import PARTS, Recipe, Selection, draws_all, pair_weights

LAYOUTS = ("separate", "shared", "tree")
SHARED, FOCUS, REST = range(len(PARTS))
CHOSEN, REJECTED = range(2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowSettings:
    """The layout and the caps of a row: `tokens` T, `targets` G and `pairs` P (0: chosen from the data).

    Rows have one of at most so many `lengths` (0: `tokens` only), none above `tokens`: every step takes the one that
    fills its microbatches best. `rows_per_microbatch` may be left 0 until the mesh is known (`spread`).
    """

    layout: str
    truncate: bool
    tokens: int
    lengths: int
    targets: int
    pairs: int
    rows_per_microbatch: int

    def __post_init__(self):
        if self.layout not in LAYOUTS:
            raise UserError(
                f"rows.layout must be one of {LAYOUTS}, not {self.layout!r}{did_you_mean(self.layout, LAYOUTS)}"
            )
        if self.tokens < 1 or min(self.lengths, self.targets, self.pairs, self.rows_per_microbatch) < 0:
            raise UserError(
                "rows.tokens must be at least 1; rows.lengths, rows.targets, rows.pairs and rows.rows_per_microbatch "
                "at least 0"
            )

    def spread(self, parts: int) -> RowSettings:
        """Returns them with rows a microbatch: one for each of the `parts` of a mesh, where no number was given."""
        return dataclasses.replace(self, rows_per_microbatch=self.rows_per_microbatch or parts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weighting:
    """What a layout needs of the objective: the recipe, the seed of `hybrid`, and the NLL normaliser."""

    recipe: Recipe
    seed: int
    nll_norm: str


class Tree(NamedTuple):
    """Pairs laid out together: columns [t], counted from the tree's start, targets [g] and terms [e].

    The slots of pair i are 2 i + `CHOSEN` and 2 i + `REJECTED`. Terms come pair by pair, chosen side first, those of a
    side in order. `paths[slot]` is the column at each position of prompt and completion, as far as they take columns.
    """

    tokens: np.ndarray
    depth: np.ndarray
    visible_until: np.ndarray
    source: np.ndarray
    target: np.ndarray
    term: np.ndarray
    slot: np.ndarray
    weight: np.ndarray
    nll_weight: np.ndarray
    part: np.ndarray
    paths: tuple[np.ndarray, ...]

    @property
    def pairs(self) -> int:
        """How many pairs it holds."""
        return len(self.paths) // 2


class Costs(NamedTuple):
    """What each record takes of a row, int64 [N]: in a tree of its own, or joined to the tree of the record before it.

    Columns and targets; terms are the same either way, and some of them are the chosen side's. Records of one `group`
    (a number that grows along the records) follow each other and may share a tree.
    """

    tokens: np.ndarray
    targets: np.ndarray
    joined_tokens: np.ndarray
    joined_targets: np.ndarray
    terms: np.ndarray
    chosen_terms: np.ndarray
    group: np.ndarray

    def whole_groups(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the columns and targets that every record takes where each group is one tree."""
        is_joined = np.diff(self.group, prepend=-1) == 0
        tokens = np.where(is_joined, self.joined_tokens, self.tokens)
        return tokens, np.where(is_joined, self.joined_targets, self.targets)


class _Side(NamedTuple):
    """One completion behind its prompt: positions of its targets, what uses them, and how much of it takes columns."""

    ids: np.ndarray
    targets: np.ndarray
    weight: np.ndarray
    nll_weight: np.ndarray
    part: np.ndarray
    reach: int


def lay_out(examples: Sequence[Example], records: Sequence[int], rows: RowSettings, weighting: Weighting) -> Tree:
    """Returns the tree of pairs with one prompt and one chosen side (of a single pair, where the layout is not `tree`).

    `records` are their numbers in the dataset (they seed `hybrid`).
    """
    pairs = [_sides(*pair, rows.truncate, weighting) for pair in zip(examples, records, strict=True)]
    # Focus is found against each rejected side, so that pairs may need more or less of their chosen side.
    longest = max((chosen for chosen, _ in pairs), key=lambda side: side.reach)
    branches = [side.ids[: side.reach] for side in (longest, *(rejected for _, rejected in pairs))]
    columns, (chosen, *rejected) = preorder(branches, share=rows.layout != "separate")
    sides = [side for pair in pairs for side in pair]
    found = [path for other in rejected for path in (chosen, other)]
    paths = [path[: side.reach] for path, side in zip(found, sides, strict=True)]
    sources = np.concatenate([path[side.targets - 1] for path, side in zip(paths, sides, strict=True)])
    targets = np.concatenate([side.ids[side.targets] for side in sides])
    unique, term = np.unique(sources.astype(np.int64) << 32 | targets, return_inverse=True)
    return Tree(
        *columns,
        source=(unique >> 32).astype(np.int32),
        target=(unique & 0xFFFFFFFF).astype(np.int32),
        term=term.astype(np.int32),
        slot=np.repeat(np.arange(len(sides)), [side.targets.size for side in sides]),
        weight=np.concatenate([side.weight for side in sides]),
        nll_weight=np.concatenate([side.nll_weight for side in sides]),
        part=np.concatenate([side.part for side in sides]),
        paths=tuple(paths),
    )


def costs(index: Index, rows: RowSettings, weighting: Weighting) -> Costs:
    """Returns what `lay_out` takes for every record, from the index alone (no record is read).

    Exact for a tree of one pair. Joined costs are an upper bound: the index knows what a rejected side shares with its
    chosen side and with the rejected side before it, but a trie may share more of it with an earlier one.
    """
    sizes = _sizes(index, rows.truncate, weighting)
    tokens, targets = _alone(index, sizes, share=rows.layout != "separate")
    terms = sizes.chosen_targets + sizes.rejected_targets
    if rows.layout == "tree":
        return Costs(tokens, targets, *_joined(index, sizes), terms, sizes.chosen_targets, index.group)
    return Costs(tokens, targets, tokens, targets, terms, sizes.chosen_targets, np.arange(len(index)))


def place(batch: RowBatch, row: tuple[int, ...], trees: Sequence[Tree], ref_logps: Sequence[np.ndarray | None]) -> None:
    """Writes trees side by side into one row of `batch`, in place; `row` indexes the leading dims.

    `ref_logps` holds the reference log-probs of each tree's terms, or None (no reference: zeros).
    """
    column = target = term = pair = 0
    for tree, ref_logp in zip(trees, ref_logps, strict=True):
        columns = (*row, slice(column, column + len(tree.tokens)))
        batch.tokens_RT[columns] = tree.tokens
        batch.depth_RT[columns] = tree.depth
        batch.visible_until_RT[columns] = tree.visible_until + column
        targets = (*row, slice(target, target + len(tree.target)))
        batch.source_RG[targets] = tree.source + column
        batch.target_RG[targets] = tree.target
        if ref_logp is not None:
            # Terms of one target have one value, up to rounding; the last one written stays, which is the first term's.
            batch.ref_logp_RG[targets][tree.term[::-1]] = ref_logp[::-1]
        terms = (*row, slice(term, term + len(tree.term)))
        batch.term_RE[terms] = tree.term + target
        batch.slot_RE[terms] = tree.slot + 2 * pair
        batch.weight_RE[terms] = tree.weight
        batch.nll_weight_RE[terms] = tree.nll_weight
        batch.part_RE[terms] = tree.part
        pairs = (*row, slice(pair, pair + tree.pairs))
        numbers = np.arange(pair, pair + tree.pairs)
        batch.pair_chosen_RP[pairs] = 2 * numbers + CHOSEN
        batch.pair_rejected_RP[pairs] = 2 * numbers + REJECTED
        batch.pair_weight_RP[pairs] = 1.0
        column, target = column + len(tree.tokens), target + len(tree.target)
        term, pair = term + len(tree.term), pair + tree.pairs


def _sides(example: Example, record: int, truncate: bool, weighting: Weighting) -> tuple[_Side, _Side]:
    weights = pair_weights(
        weighting.recipe,
        example.chosen_focus,
        example.rejected_focus,
        record=record,
        seed=weighting.seed,
        nll_norm=weighting.nll_norm,
    )
    no_nll = np.zeros(len(example.rejected_ids), np.float32)
    chosen_part, rejected_part = token_parts(example)

    def side(ids: np.ndarray, parts: np.ndarray, weight: np.ndarray, nll_weight: np.ndarray) -> _Side:
        targets = np.flatnonzero((weight != 0) | (nll_weight != 0))
        whole, behind_prompt = np.concatenate([example.prompt_ids, ids]), targets + len(example.prompt_ids)
        reach = 0 if not targets.size else int(behind_prompt[-1]) if truncate else len(whole)
        return _Side(whole, behind_prompt, weight[targets], nll_weight[targets], parts[targets], reach)

    return (
        side(example.chosen_ids, chosen_part, weights.chosen, weights.nll),
        side(example.rejected_ids, rejected_part, weights.rejected, no_nll),
    )


def token_parts(example: Example) -> tuple[np.ndarray, np.ndarray]:
    """Returns where each token of the chosen and of the rejected side lies, as numbers of `PARTS`."""
    common = common_prefix(example.chosen_ids, example.rejected_ids)

    def parts(focus: np.ndarray) -> np.ndarray:
        return np.where(np.arange(len(focus)) < common, SHARED, np.where(focus != 0, FOCUS, REST))

    return parts(example.chosen_focus), parts(example.rejected_focus)


class _Sizes(NamedTuple):
    """Of every record: the targets and columns of its sides (without the prompt), and the targets that both share."""

    chosen_targets: np.ndarray
    chosen_columns: np.ndarray
    rejected_targets: np.ndarray
    rejected_columns: np.ndarray
    common_targets: np.ndarray


# What of the common prefix both sides weigh, by what they select.
_COMMON_TARGETS = {
    ("all", "all"): "common_len",
    ("all", "focus"): "common_rejected_focus",
    ("focus", "all"): "common_chosen_focus",
    ("focus", "focus"): "common_both_focus",
}


def _sizes(index: Index, truncate: bool, weighting: Weighting) -> _Sizes:
    recipe = weighting.recipe
    chosen: Selection = "all" if recipe.nll else recipe.chosen
    if recipe.rejected != "hybrid":
        return _selected(index, truncate, chosen, recipe.rejected)
    full, focal = (_selected(index, truncate, chosen, rejected) for rejected in ("all", "focus"))
    in_full = draws_all(np.arange(len(index)), weighting.seed)
    return _Sizes(*(np.where(in_full, a, b) for a, b in zip(full, focal, strict=True)))


def _selected(index: Index, truncate: bool, chosen: Selection, rejected: Selection) -> _Sizes:
    common = _COMMON_TARGETS.get((chosen, rejected))
    common_targets = np.zeros(len(index), np.int64) if common is None else getattr(index, common).astype(np.int64)
    return _Sizes(
        *_counts(index, "chosen", chosen, truncate), *_counts(index, "rejected", rejected, truncate), common_targets
    )


def _counts(index: Index, side: str, selection: Selection, truncate: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns the targets of one side and the columns that it takes behind the prompt, for every record."""
    if selection == "none":
        return np.zeros(len(index), np.int64), np.zeros(len(index), np.int64)
    names = (f"{side}_focus_count", f"{side}_focus_end") if selection == "focus" else (f"{side}_len", f"{side}_len")
    targets, end = (getattr(index, name).astype(np.int64) for name in names)
    columns = end - 1 if truncate else getattr(index, f"{side}_len").astype(np.int64)
    return targets, np.where(targets > 0, columns, 0)


def _alone(index: Index, sizes: _Sizes, *, share: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns the columns and targets of every record in a tree of its own."""
    prompts = (sizes.chosen_targets > 0).astype(np.int64) + (sizes.rejected_targets > 0)
    tokens = prompts * index.prompt_len + sizes.chosen_columns + sizes.rejected_columns
    targets = sizes.chosen_targets + sizes.rejected_targets
    if not share:
        return tokens, targets
    kept = np.minimum(index.common_len, np.minimum(sizes.chosen_columns, sizes.rejected_columns))
    return tokens - (prompts == 2) * (index.prompt_len + kept), targets - sizes.common_targets


def _joined(index: Index, sizes: _Sizes) -> tuple[np.ndarray, np.ndarray]:
    """Returns the columns and targets that every record adds, at most, to a tree that holds the record before it."""
    before = _Sizes(*(np.concatenate([[0], column[:-1]]) for column in sizes))
    chosen = np.maximum(sizes.chosen_columns, before.chosen_columns)
    kept = np.maximum(
        np.minimum(index.common_len, np.minimum(sizes.rejected_columns, chosen)),
        np.minimum(index.previous_len, np.minimum(sizes.rejected_columns, before.rejected_columns)),
    )
    is_used, was_used = (each.chosen_targets + each.rejected_targets > 0 for each in (sizes, before))
    tokens = (is_used & ~was_used) * index.prompt_len + chosen - before.chosen_columns + sizes.rejected_columns - kept
    # A side that is weighed in full adds no target where the same side, or one that begins like it, was before.
    chosen_new = np.where(before.chosen_targets == index.chosen_len, 0, sizes.chosen_targets)
    in_full = sizes.rejected_targets == index.rejected_len
    was_in_full = np.concatenate([[False], in_full[:-1]])
    weighed = np.maximum(sizes.common_targets, (in_full & was_in_full) * index.previous_len)
    return tokens, chosen_new + sizes.rejected_targets - weighed
