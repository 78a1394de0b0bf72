"""Pairs as one HTML page that needs no network: what `view` found, as numbers for the template to place.

The template escapes everything (code of a dataset is untrusted), and the page forbids itself every script but its own.
"""

from __future__ import annotations

import base64
import collections
import hashlib
import importlib.resources
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import jinja2
from etils import epath

from iterpref_jax import progress
from iterpref_jax.view import model as view
from iterpref_jax.view import source as view_source
from iterpref_jax.view import text as view_text
from iterpref_jax.view import tree as view_tree

TEMPLATE = "page.html.j2"
PROMPT_CHARACTERS = 400
# Room that a character of a label takes, as a share of the picture: a narrower segment has no label.
LABEL_CHARACTER = 0.011
# Heights in pixels: a lane, the strip of marks at its edge, and the way from lane to lane.
LANE, STRIP = 16, 4
PITCH = LANE + STRIP


class Box(NamedTuple):
    """A rectangle: x and width in percent of the picture, y and height in pixels; `names` are its CSS classes."""

    x: float
    width: float
    y: int
    height: int
    names: str
    label: str
    title: str


class Drawing(NamedTuple):
    """One layout's picture."""

    name: str
    tokens: int
    targets: int
    idle: int
    left_out: int
    times: float
    pairs: int
    height: int
    boxes: tuple[Box, ...]


def write(shown: view_source.Shown, path: epath.PathLike) -> None:
    """Writes the page."""
    target = epath.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(render(shown))


def render(shown: view_source.Shown) -> str:
    """Returns the page."""
    with progress.progress("page", len(shown.pairs), "pairs") as advance:
        return _template().render(
            shown=shown,
            bars=_bars(shown.summary),
            pairs=_counted(shown.pairs, advance),
            names={function.__name__: function for function in (tokens, drawings, gathered, run_class, line_class)},
            prompt_characters=PROMPT_CHARACTERS,
            shortened=view_text.shortened,
            mark=view_text.mark,
            focal=view_tree.FOCAL,
        )


def drawings(pair: view.PairView) -> list[Drawing]:
    """Returns the pictures of a pair's layouts, all to one scale."""
    if pair.tokens is None:
        return []
    pictures = [*pair.tokens.pictures, *filter(None, [pair.tokens.group])]
    scale = max(segment.end for picture in pictures for segment in picture.segments)
    return [_drawing(picture, scale) for picture in pictures]


def tokens(pair: view.PairView) -> dict[str, Any]:
    """Returns what the page's script tells about a token: the tree's arrays, and per side each token's place in it."""
    if pair.tokens is None:
        return {}
    tree = pair.tokens.tree
    return {
        "columns": [tree.tokens.tolist(), tree.depth.tolist(), tree.visible_until.tolist()],
        "targets": [
            list(target)
            for target in zip(
                tree.source[tree.term].tolist(),
                tree.target[tree.term].tolist(),
                tree.slot.tolist(),
                [_short(weight) for weight in tree.weight.tolist()],
                [_short(weight) for weight in tree.nll_weight.tolist()],
                [view.PARTS[part] for part in tree.part.tolist()],
                strict=True,
            )
        ],
        "sides": [[_facts(token) for token in side.tokens] for side in pair.sides],
    }


def run_class(run: view_text.Run, side: view.Completion) -> str:
    """Returns the CSS classes of a run: f focus, a anchor, w scored, o left out, k continued from the line before."""
    names = []
    if run.parts and all(part.is_focus for part in run.parts):
        names.append("f")
    if run.token is not None:
        token = side.tokens[run.token]
        names += ["a"] * token.is_anchor + ["w"] * token.is_target + ["o"] * token.is_left_out
    return " ".join(names + ["k"] * (not run.is_start))


def gathered(pair: view.PairView) -> dict[int, str]:
    """Returns the CSS classes of the columns that predict a target: w and the targets' sides."""
    if pair.tokens is None:
        return {}
    tree, sides = pair.tokens.tree, collections.defaultdict(set)
    for source, side in zip(tree.source[tree.term].tolist(), tree.slot.tolist(), strict=True):
        sides[source].add(view.SIDES[side])
    return {column: " ".join(["w", *sorted(found)]) for column, found in sides.items()}


def line_class(line: view_text.Line, side: view.Completion, pair: view.PairView) -> str:
    """Returns the CSS classes of a line: h has focus; s, t or u: its tokens are shared, in the tail, or left out."""
    names = ["h"] * line.is_focus
    found = [run.token for run in line.runs if run.token is not None]
    if pair.tokens is not None and found:
        common = pair.tokens.common_tokens
        is_out = all(side.tokens[token].is_left_out for token in found)
        names.append("u" if is_out else "s" if found[-1] < common else "t")
    return " ".join(names)


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["csp_hash"] = _csp_hash
    environment.filters["pieces"] = re.compile(r"[^/_-]*[/_-]?").findall
    environment.filters["count"] = lambda number: f"{number:,}".replace(",", "\u202f")
    source = importlib.resources.files("iterpref_jax.view").joinpath(TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(source)


def _csp_hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _counted(pairs: Iterable[view.PairView], advance: progress.Advance) -> Iterable[view.PairView]:
    for pair in pairs:
        yield pair
        advance()


def _bars(summary: view_tree.Summary | None) -> list[tuple[str, int, float, float]]:
    """Name, tokens, percent of the longest bar, and times fewer, of every layout."""
    if summary is None:
        return []
    whole = summary.tokens[view_tree.NAMES[0]]
    return [
        (name, count, 100 * count / max(whole, 1), view.factor(whole, count)) for name, count in summary.tokens.items()
    ]


def _drawing(picture: view_tree.Picture, scale: int) -> Drawing:
    sizes = dict.fromkeys(("read", "idle", "left out"), 0)
    for segment in picture.segments:
        sizes[segment.state] += segment.end - segment.start
    return Drawing(
        name=picture.name,
        tokens=picture.tokens,
        targets=picture.targets,
        idle=sizes["idle"],
        left_out=sizes["left out"],
        times=view.factor(picture.whole, picture.tokens),
        pairs=picture.pairs,
        height=_top(max(1.0, *(segment.lane for segment in picture.segments))) + LANE + STRIP + 1,
        boxes=(
            *(_segment_box(segment, scale) for segment in picture.segments),
            *(_mark_box(marks, scale) for marks in picture.marks),
        ),
    )


def _top(lane: float) -> int:
    return STRIP + 1 + int(lane * PITCH)


def _segment_box(segment: view_tree.Segment, scale: int) -> Box:
    size = segment.end - segment.start
    name = {"prompt": "prompt", "common": "common prefix", "tail": f"{segment.owner} tail"}[segment.kind]
    label = f"{name} {size}"
    owner = "shared" if segment.owner == "both" else segment.owner
    meaning = {"read": "", "idle": ", computed without need", "left out": ", left out"}[segment.state]
    return Box(
        x=100 * segment.start / scale,
        width=100 * size / scale,
        y=_top(segment.lane),
        height=LANE,
        names=f"{segment.kind} {segment.owner} {segment.state.replace(' ', '-')}",
        label=label if size >= len(label) * LABEL_CHARACTER * scale else "",
        title=f"{name} ({owner}): {size} tokens, positions {segment.start} to {segment.end - 1}{meaning}",
    )


def _mark_box(marks: view_tree.Marks, scale: int) -> Box:
    size = marks.end - marks.start
    top = _top(marks.lane)
    return Box(
        x=100 * marks.start / scale,
        width=100 * size / scale,
        y=top - STRIP if marks.side == "chosen" else top + LANE,
        height=STRIP - 1,
        names=f"mark {marks.side}",
        label="",
        title=f"{size} log-probs of {marks.side}, gathered at positions {marks.start} to {marks.end - 1}",
    )


def _facts(token: view.Token) -> list[Any]:
    return [
        token.id,
        token.column,
        token.source,
        _short(token.weight),
        _short(token.nll_weight),
        token.part,
        int(token.is_focus),
    ]


def _short(weight: float) -> float:
    return float(f"{weight:.4g}")
