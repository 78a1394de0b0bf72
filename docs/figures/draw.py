"""Draws the figures of the site, next to this file: `python docs/figures/draw.py`.

Focus, weights, layouts and what sees what come from the package itself, for one small history; words stand for tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np

from iterpref_jax.codeflow.focus import FocusSettings, Span, find_focus
from iterpref_jax.data.layout import RowSettings, Tree, Weighting, lay_out
from iterpref_jax.data.schema import Example, common_prefix
from iterpref_jax.objectives.weights import find_recipe, pair_weights

PROMPT = "Write median(values), the middle value or the mean of the two in the middle."
FIRST = """\
def median(values):
    middle = len(values) // 2
    if len(values) % 2:
        return values[middle]
    low = values[middle]
    high = values[middle + 1]
    return (low + high) / 2
"""
SECOND = FIRST.replace("def median(values):\n", "def median(values):\n    values = sorted(values)\n")
LAST = SECOND.replace("values[middle]\n    high = values[middle + 1]", "values[middle - 1]\n    high = values[middle]")
WORD = re.compile(r"[^\S\n]*(?:\w+|[^\w\s])|\n")
FOCUS = FocusSettings(mode="line", empty="drop", seed=0)

# One set of colours for light and one for dark: of the system, or of the page that the drawing is part of.
LIGHT = (
    "--ink:#1f2328;--soft:#5b6470;--line:#c5ccd3;--prompt:#c9ced6;"
    "--common:#9db8e8;--good:#8fd3a5;--bad:#f8d6cb;--focus:#ef7d62;"
)
DARK = (
    "--ink:#e4e6ea;--soft:#a9b1bb;--line:#4a5260;--prompt:#5a6270;"
    "--common:#3f62a5;--good:#2d7d4a;--bad:#5e3a32;--focus:#b8452c;"
)
STYLE = (
    f".fig{{{LIGHT}font:13px sans-serif}}"
    f"@media(prefers-color-scheme:dark){{.fig{{{DARK}}}}}"
    f"[data-md-color-scheme=default] .fig{{{LIGHT}}}[data-md-color-scheme=slate] .fig{{{DARK}}}"
    ".fig text{fill:var(--ink);white-space:pre}.fig .soft{fill:var(--soft)}.fig .code{font:12px monospace}"
    ".fig .head{font-weight:bold}.fig .box{fill:none;stroke:var(--line)}.fig .left{opacity:.45}"
    + "".join(f".fig .{name}{{fill:var(--{name})}}" for name in ("prompt", "common", "good", "bad", "focus", "line"))
)


class Pair(NamedTuple):
    """Two versions of the program and the words and focus that they become."""

    chosen: str
    rejected: str
    example: Example


def rect(x: float, y: float, width: float, height: float, kind: str) -> str:
    return f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"/>'


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(words)}</text>'


def svg(width: float, height: float, parts: Iterable[str]) -> str:
    head = f'<svg class="fig" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}">'
    return "\n".join([head, f"<style>{STYLE}</style>", *parts, "</svg>"]) + "\n"


def words(code: str) -> list[Span]:
    return [match.span() for match in WORD.finditer(code)]


def make_pair(chosen: str, rejected: str, numbers: dict[str, int]) -> Pair:
    """Returns the pair as a record has it; `numbers` gives every word its id."""

    def ids(code: str) -> np.ndarray:
        return np.array([numbers.setdefault(code[slice(*span)], len(numbers) + 1) for span in words(code)], np.int32)

    def flags(code: str, spans: Sequence[Span]) -> np.ndarray:
        return np.array([any(a < end and start < b for start, end in spans) for a, b in words(code)], np.uint8)

    focus = find_focus(chosen, rejected, FOCUS, key="median")
    sides = ids(PROMPT), ids(chosen), ids(rejected)
    marks = flags(chosen, focus.chosen), flags(rejected, focus.rejected)
    return Pair(chosen, rejected, Example("p", "t", *sides, *marks))


def tree_of(pairs: Sequence[Pair], layout: str, *, truncate: bool) -> Tree:
    rows = RowSettings(
        layout=layout, truncate=truncate, tokens=4096, lengths=0, targets=0, pairs=0, rows_per_microbatch=1
    )
    weighting = Weighting(recipe=find_recipe("target_rpo"), seed=0, nll_norm="example")
    return lay_out([pair.example for pair in pairs], range(len(pairs)), rows, weighting)


def kinds(tree: Tree, pairs: Sequence[Pair]) -> list[str]:
    """Returns what every column of a tree is, as a colour."""
    found, prompt, shared = ["prompt"] * len(tree.tokens), len(pairs[0].example.prompt_ids), 0
    for number, pair in enumerate(pairs):
        example = pair.example
        common = common_prefix(example.chosen_ids, example.rejected_ids)
        shared = max(shared, common)
        for position, column in enumerate(tree.paths[2 * number + 1][prompt:]):
            kind = "focus" if example.rejected_focus[position] else "bad"
            found[column] = "common" if position < common else kind
    # The chosen side last: columns that it shares are its own.
    for position, column in enumerate(max(tree.paths[::2], key=len)[prompt:]):
        found[column] = "common" if position < shared else "good"
    return found


def strip(x: float, y: float, cell: float, height: float, found: Sequence[str]) -> list[str]:
    return [rect(x + i * cell, y, cell - 0.5, height, kind) for i, kind in enumerate(found)]


def program(x: float, y: float, code: str, weights: np.ndarray, kind: str, ends: int) -> list[str]:
    """Draws a program; words with a weight get a ground of their colour, those from number `ends` on are pale."""
    parts, width, height, row, column = [], 7.25, 19, 0, 0
    for number, ((start, end), weight) in enumerate(zip(words(code), weights, strict=True)):
        word = code[start:end]
        if word == "\n":
            row, column = row + 1, 0
            continue
        blank = len(word) - len(word.lstrip())
        indent = blank if column == 0 else 0
        if weight:
            parts.append(
                rect(x + (column + indent) * width, y + row * height - 13, (len(word) - indent) * width, 17, kind)
            )
        pale = " left" if number >= ends else ""
        parts.append(text(x + (column + blank) * width, y + row * height, word.strip(), f"code{pale}"))
        column += len(word)
    return parts


def weights_figure(pair: Pair) -> str:
    """The same pair under two recipes: which words carry loss, and what is not computed."""
    parts, example = [], pair.example
    panels = [("y+, the repair: all of it, in both", "good", "target_rpo", True)]
    panels += [("y-, DPO: all of it", "focus", "dpo", False)]
    panels += [("y-, Target-DPO: the wrong lines", "focus", "target_dpo", False)]
    for number, (title, kind, recipe, is_chosen) in enumerate(panels):
        found = pair_weights(
            find_recipe(recipe), example.chosen_focus, example.rejected_focus, record=0, seed=0, nll_norm="example"
        )
        weights, code = (found.chosen, pair.chosen) if is_chosen else (found.rejected, pair.rejected)
        # What follows the last word with a weight is left out.
        ends = int(np.flatnonzero(weights)[-1]) + 1
        x = 8 + number * 262
        parts += [text(x, 20, title, "head"), *program(x, 48, code, weights, kind, ends)]
    note = "A coloured ground is a weight of 1. Pale words come after the last weight: they are not computed."
    parts.append(text(8, 214, note, "soft"))
    return svg(792, 226, parts)


def layouts_figure(first: Pair, second: Pair) -> str:
    """What the model reads for one pair and for a history of two failing versions, in every layout."""
    cases = [
        ("One pair as two sequences (separate)", [second], "separate", False),
        ("One tree: prompt and common prefix once (shared)", [second], "shared", False),
        ("... without what follows the last wrong line (truncated)", [second], "shared", True),
        ("Both failing versions in one tree (tree, truncated)", [first, second], "tree", True),
    ]
    parts, y, cell = [], 20, 3.7
    for title, pairs, layout, truncate in cases:
        tree = tree_of(pairs, layout, truncate=truncate)
        count = f"{len(tree.tokens)} words for {len(pairs)} pair" + "s" * (len(pairs) > 1)
        parts += [text(8, y, f"{title}: {count}")]
        parts += strip(8, y + 8, cell, 22, kinds(tree, pairs))
        y += 56
    names = "prompt", "common prefix", "chosen tail", "rejected tail", "wrong lines"
    for number, (kind, name) in enumerate(zip(("prompt", "common", "good", "bad", "focus"), names, strict=True)):
        parts += [rect(8 + number * 126, y - 8, 12, 12, kind), text(26 + number * 126, y + 3, name, "soft")]
    return svg(792, y + 14, parts)


def sight_figure(first: Pair, second: Pair) -> str:
    """Which column sees which, in the tree of both failing versions: `j <= i < visible_until[j]`."""
    pairs = [first, second]
    tree, cell, left, top = tree_of(pairs, "tree", truncate=True), 2.6, 40, 40
    found, until = kinds(tree, pairs), tree.visible_until
    size = len(found)
    parts = [text(left, 16, "key column j"), *strip(left, 24, cell, 10, found)]
    parts += [rect(24, top + i * cell, 10, cell - 0.5, kind) for i, kind in enumerate(found)]
    for i in range(size):
        seen = np.flatnonzero((np.arange(size) <= i) & (i < until))
        for run in np.split(seen, np.flatnonzero(np.diff(seen) > 1) + 1):
            parts.append(rect(left + run[0] * cell, top + i * cell, len(run) * cell, cell, found[i]))
    side = size * cell
    parts.append(rect(left, top, side, side, "box"))
    lines = [
        "Row i shows what column i sees,",
        "in the colour of column i.",
        "",
        "Each rejected tail sees the prompt and",
        "the part of the programs that it shares,",
        "but no other tail.",
        "",
        "One number a column says it all:",
        "column j is seen by i where",
        "j <= i < visible_until[j].",
    ]
    parts += [text(left + side + 24, top + 14 + 20 * i, line) for i, line in enumerate(lines) if line]
    return svg(792, top + side + 8, parts)


def journey_figure() -> str:
    """The way of one pair from a history to an update."""
    steps = [
        ("history", ["versions, each", "with its verdict", "iterpref inject"]),
        ("pair", ["last version +,", "a failing one -", "iterpref build"]),
        ("focus", ["lines that are not", "common to both,", "filters"]),
        ("record", ["token ids, focus", "0/1 a token", "TFRecord, index"]),
        ("tree", ["shared parts", "once; packed", "into rows"]),
        ("update", ["log-ratios, sums,", "link, gradients", "iterpref train"]),
    ]
    parts, width, gap = [], 116, 18
    for number, (title, lines) in enumerate(steps):
        x = 4 + number * (width + gap)
        parts.append(f'<rect class="box" x="{x}" y="8" width="{width}" height="92" rx="6"/>')
        parts.append(text(x + width / 2, 30, title, "head", "middle"))
        parts += [text(x + width / 2, 52 + 18 * i, line, "soft", "middle") for i, line in enumerate(lines)]
        if number:
            parts.append(f'<path class="line" d="M{x - 15} 51h6v-4l7 7-7 7v-4h-6z"/>')
    return svg(794, 108, parts)


def drawings() -> dict[str, str]:
    """Returns the text of every figure by its file name."""
    numbers: dict[str, int] = {}
    first, second = make_pair(LAST, FIRST, numbers), make_pair(LAST, SECOND, numbers)
    return {
        "journey.svg": journey_figure(),
        "weights.svg": weights_figure(second),
        "layouts.svg": layouts_figure(first, second),
        "sight.svg": sight_figure(first, second),
    }


if __name__ == "__main__":
    for name, drawing in drawings().items():
        Path(__file__).with_name(name).write_text(drawing, encoding="utf-8")
