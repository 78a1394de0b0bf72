"""One pair as it is shown, in plain data: text cut into tokens, focus, the weights of a recipe, and the trees.

The tokens carry what `layout.lay_out` gives the model for them, so a page shows the training input, not a story about
it. `terminal` and `page` only paint what they find here.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from iterpref_jax.codeflow import focus as focusing
from iterpref_jax.codeflow import records
from iterpref_jax.data import layout, schema, text_rules, token_bytes
from iterpref_jax.errors import UserError
from iterpref_jax.objectives.weights import PARTS, RECIPES, find_recipe
from iterpref_jax.view import text as view_text
from iterpref_jax.view import tree as view_tree

DEFAULT_RECIPE = "target_rpo"
SIDES = ("chosen", "rejected")


class Token(NamedTuple):
    """A token of a completion, and what it is in the tree of the layout `shared+truncate`.

    `column`, `depth` and `visible_until` are None where the token is left out; `source` (the column that predicts it)
    and `part` are None and the weights 0 where it is no target. An anchor is in the focus without any focus character.
    """

    id: int
    text: str
    is_focus: bool
    is_anchor: bool
    column: int | None
    depth: int | None
    visible_until: int | None
    source: int | None
    weight: float
    nll_weight: float
    part: str | None

    @property
    def is_target(self) -> bool:
        """Whether the token's log-prob is computed."""
        return self.source is not None

    @property
    def is_left_out(self) -> bool:
        """Whether the token is neither computed nor scored."""
        return self.column is None and self.source is None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Completion:
    """One side: its text, focus spans in it, tokens (none without a tokenizer) and lines."""

    name: str
    text: str
    spans: tuple[focusing.Span, ...]
    tokens: tuple[Token, ...]
    lines: tuple[view_text.Line, ...]

    @property
    def focus_tokens(self) -> int:
        """How many tokens are in the focus."""
        return sum(token.is_focus for token in self.tokens)


class Stretch(NamedTuple):
    """A stretch of the row with its tokens as text; `runs[i]` is column `start + i`."""

    kind: str
    owner: str
    start: int
    runs: tuple[view_text.Run, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenView:
    """What only tokens can show: the pair's record, the trees of the four layouts, and the row of the last one.

    `group` is the tree of all pairs with the same chosen side, where there are several.
    """

    example: schema.Example
    tree: layout.Tree
    pictures: tuple[view_tree.Picture, ...]
    group: view_tree.Picture | None
    stretches: tuple[Stretch, ...]

    @property
    def common_tokens(self) -> int:
        """The length of the common token prefix of both completions."""
        return schema.counts(self.example)["common_len"]

    @property
    def saving(self) -> float:
        """How many times fewer tokens the model reads than as two whole sequences."""
        return factor(self.pictures[0].tokens, self.pictures[-1].tokens)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairView:
    """One pair; `dropped` names the rule by which `build` leaves it out, `tokens` is None without a tokenizer."""

    pair_id: str
    task: str
    prompt: tuple[view_text.Line, ...]
    chosen: Completion
    rejected: Completion
    dropped: str | None
    tokens: TokenView | None

    @property
    def sides(self) -> tuple[Completion, Completion]:
        """Both completions, the chosen one first."""
        return self.chosen, self.rejected

    @property
    def rows(self) -> list[tuple[view_text.Line | None, view_text.Line | None]]:
        """The lines of both sides, equal ones at one height."""
        return view_text.aligned(self.chosen.lines, self.rejected.lines)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What ids stand for: bytes by id, the special ones, and the fences that the text rules put around programs."""

    table: Sequence[bytes]
    special: frozenset[int]
    fences: tuple[str, str]

    def decode(self, ids: Iterable[int]) -> tuple[str, list[view_text.Place]]:
        """Returns the text of ids and where each token stands in it."""
        ids = [int(i) for i in ids]
        pieces = [self.table[i] if 0 <= i < len(self.table) else b"" for i in ids]
        return view_text.decode(pieces, [i in self.special for i in ids])


def vocabulary(tokenizer, rules: text_rules.TextRules) -> Vocabulary:
    """Returns the vocabulary of a fast transformers tokenizer."""
    backend = tokenizer.backend_tokenizer
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return Vocabulary(
        table=token_bytes.token_bytes(backend, json.loads(backend.to_str())),
        special=frozenset(special | set(tokenizer.all_special_ids)),
        fences=(rules.fence_open, rules.fence_close),
    )


def choose_recipe(name: str, focus_mode: str) -> str:
    """Returns `name`, or for "" target_rpo where it fits the focus of the pairs, else the first recipe that does.

    Raises UserError for an unknown recipe, or one that needs another focus than the pairs have.
    """
    fitting = [known for known, recipe in RECIPES.items() if recipe.focus_mode in (None, focus_mode)]
    focal = [known for known in (DEFAULT_RECIPE, *fitting) if RECIPES[known].focus_mode == focus_mode]
    name = name or focal[0]
    if find_recipe(name).focus_mode not in (None, focus_mode):
        raise UserError(
            f"--recipe={name} needs {find_recipe(name).focus_mode!r} focus, these pairs have {focus_mode!r}; "
            f"recipes that fit: {', '.join(fitting)}"
        )
    return name


def of_record(
    example: schema.Example,
    record: int,
    words: Vocabulary,
    weights: layout.Weighting,
    *,
    spans: tuple[Sequence[focusing.Span], Sequence[focusing.Span]] | None = None,
    dropped: str | None = None,
    group: dict[int, schema.Example] | None = None,
) -> PairView:
    """Returns the view of a record, number `record` of its split; without `spans` the focus is that of the tokens.

    `spans` are character spans of the completions with their fences, one sequence per side. `group` holds the records
    of its group by number, this one among them.
    """
    tree = layout.lay_out([example], [record], view_tree.row_settings(view_tree.FOCAL), weights)
    text, places = words.decode(example.prompt_ids)
    chosen, rejected = (
        _completion(side, example, tree, words, None if spans is None else spans[side])
        for side in (layout.CHOSEN, layout.REJECTED)
    )
    return PairView(
        pair_id=example.pair_id,
        task=example.task,
        prompt=tuple(view_text.lines(text, places, (), ("", ""))),
        chosen=chosen,
        rejected=rejected,
        dropped=dropped,
        tokens=TokenView(
            example=example,
            tree=tree,
            pictures=tuple(_pictures(example, record, weights)),
            group=_group_picture(group, weights) if group is not None and len(group) > 1 else None,
            stretches=tuple(_stretches(tree, example, words)),
        ),
    )


def of_text(pair: records.Pair, focus: focusing.Focus, *, dropped: str | None = None) -> PairView:
    """Returns the view of a pair without a tokenizer: text and focus only."""
    chosen, rejected = (
        Completion(
            name=name,
            text=text,
            spans=spans,
            tokens=(),
            lines=tuple(view_text.lines(text, (), spans, ("", ""))),
        )
        for name, text, spans in (
            ("chosen", pair.chosen, focus.chosen),
            ("rejected", pair.rejected, focus.rejected),
        )
    )
    prompt = tuple(view_text.lines(_prompt_text(pair.prompt), (), (), ("", "")))
    return PairView(
        pair_id=pair.pair_id,
        task=pair.task,
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        dropped=dropped,
        tokens=None,
    )


def factor(whole: int, part: int) -> float:
    """Returns how many times `part` goes into `whole`; 1 where both are nothing."""
    return whole / part if part else 1.0


def _completion(
    side: int,
    example: schema.Example,
    tree: layout.Tree,
    words: Vocabulary,
    spans: Sequence[focusing.Span] | None,
) -> Completion:
    ids, focus = getattr(example, f"{SIDES[side]}_ids"), getattr(example, f"{SIDES[side]}_focus")
    text, places = words.decode(ids)
    if spans is None:
        spans = _merged((place.start, place.end) for place, inside in zip(places, focus, strict=True) if inside)
    spans = _settled(spans, [place for place, inside in zip(places, focus, strict=True) if inside])
    return Completion(
        name=SIDES[side],
        text=text,
        spans=tuple(spans),
        tokens=tuple(_tokens(side, example, tree, [_word(text, place, spans) for place in places])),
        lines=tuple(view_text.lines(text, places, spans, words.fences)),
    )


class _Word(NamedTuple):
    """The text of a token, and whether any of it is in the focus."""

    text: str
    in_focus: bool


def _word(text: str, place: view_text.Place, spans: Sequence[focusing.Span]) -> _Word:
    # The later bytes of a split character stand behind it.
    first = min(place.start, place.end - 1)
    in_focus = any(start < place.end and first < end for start, end in spans)
    return _Word(text[place.start : place.end], in_focus)


def _tokens(side: int, example: schema.Example, tree: layout.Tree, words: list[_Word]) -> Iterable[Token]:
    """Yields a completion's tokens with what the tree holds for them, found by their place in the branch."""
    ids, focus = getattr(example, f"{SIDES[side]}_ids"), getattr(example, f"{SIDES[side]}_focus")
    prompt = len(example.prompt_ids)
    columns = view_tree.column_of(tree, side, prompt + len(ids))[prompt:].tolist()
    own = np.flatnonzero(tree.slot == side)
    # A target stands one position behind the column that predicts it.
    targets = dict(zip((tree.depth[tree.source[tree.term[own]]] + 1 - prompt).tolist(), own.tolist(), strict=True))
    for number, (i, word, column) in enumerate(zip(ids.tolist(), words, columns, strict=True)):
        placed = (
            (None, None, None) if column < 0 else (column, int(tree.depth[column]), int(tree.visible_until[column]))
        )
        target = targets.get(number)
        facts = (None, 0.0, 0.0, None) if target is None else _target(tree, target)
        is_focus = bool(focus[number])
        yield Token(i, word.text, is_focus, is_focus and not word.in_focus, *placed, *facts)


def _target(tree: layout.Tree, term: int) -> tuple[int, float, float, str]:
    weights = float(tree.weight[term]), float(tree.nll_weight[term])
    return int(tree.source[tree.term[term]]), *weights, PARTS[int(tree.part[term])]


def _pictures(example: schema.Example, record: int, weights: layout.Weighting) -> Iterable[view_tree.Picture]:
    trees = {
        name: layout.lay_out([example], [record], view_tree.row_settings(name), weights) for name in view_tree.NAMES
    }
    whole = len(trees[view_tree.NAMES[0]].tokens)
    for name, tree in trees.items():
        yield view_tree.picture(name, tree, example, whole)


def _group_picture(group: dict[int, schema.Example], weights: layout.Weighting) -> view_tree.Picture:
    whole = view_tree.row_settings(view_tree.NAMES[0])
    apart = [layout.lay_out([example], [record], whole, weights) for record, example in group.items()]
    tree = layout.lay_out([*group.values()], [*group], view_tree.row_settings(view_tree.GROUP), weights)
    return view_tree.group_picture(tree, [*group.values()], sum(len(each.tokens) for each in apart))


def _stretches(tree: layout.Tree, example: schema.Example, words: Vocabulary) -> Iterable[Stretch]:
    for kind, owner, start, end in view_tree.stretches(tree, example):
        yield Stretch(kind, owner, start, tuple(view_text.flow(*words.decode(tree.tokens[start:end]))))


def _prompt_text(prompt: str | tuple[records.Message, ...]) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"[{message['role']}]\n{message['content']}" for message in prompt)


def _settled(spans: Iterable[focusing.Span], focus: Sequence[view_text.Place]) -> list[focusing.Span]:
    """Moves each anchor to the focus token that it became: the encoder passes over what both sides have in common."""
    settled = []
    for start, end in spans:
        if start == end:
            start = end = max(start, next((place.start for place in focus if place.end > start), start))
        settled.append((start, end))
    return settled


def _merged(spans: Iterable[focusing.Span]) -> list[focusing.Span]:
    merged: list[focusing.Span] = []
    for start, end in spans:
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], end)
        elif start < end:
            merged.append((start, end))
    return merged
