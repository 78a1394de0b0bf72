"""The page and the terminal paint what the view holds: every token once, code never as markup or control codes."""

from __future__ import annotations

import base64
import hashlib
import html
import html.parser
import io
import json
import re

import numpy as np
import pytest
import rich.console

from iterpref_jax.codeflow import focus as focusing
from iterpref_jax.view import model as view
from iterpref_jax.view import page as view_html
from iterpref_jax.view import terminal as view_terminal
from iterpref_jax.view import text as view_text
from tests.data import tiny
from tests.view import made


class _Page(html.parser.HTMLParser):
    """The parts of a page that the tests ask for."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.columns: list[int] = []
        self.data: list[str] = []
        self.code: dict[str, str] = {"0": "", "1": ""}
        self._start: int | None = None
        self._side: str | None = None
        self._in_code = self._in_data = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append(tag)
        self._side = found.get("data-side", None if "data-start" in found else self._side)
        self._start = int(found["data-start"]) if "data-start" in found else self._start
        self._in_code = tag == "code" or (self._in_code and tag in "bi")
        self._in_data = found.get("type") == "application/json"
        if tag == "b" and "data-k" in found and self._side is None:
            self.columns.append(self._start + int(found["data-k"]))
        if self._side and tag == "i" and found["class"].split()[0] in "nc":
            self.code[self._side] += "\n" if found["class"][0] == "n" else found["data-mark"]

    def handle_endtag(self, tag):
        self._in_code = self._in_code and tag != "code"
        self._in_data = False

    def handle_data(self, data):
        if self._in_data:
            self.data.append(data)
        elif self._in_code and self._side:
            self.code[self._side] += data


def test_code_in_a_page_is_text_and_nothing_else():
    page = view_html.render(made.shown(made.pair_view(pair_id=f"id {made.EVIL}"), name=f"<img src=x> {made.EVIL}"))
    tags = _Page(page).tags
    plain = _Page(view_html.render(made.shown(made.pair_view("x = 1\n", "x = 2\n")))).tags
    assert (tags.count("script"), tags.count("img")) == (plain.count("script"), 0) == (2, 0)
    assert made.EVIL not in page
    assert "\x1b" not in page
    assert "\u202e" not in page


def test_a_page_shows_the_code_of_both_sides():
    pair = made.pair_view()
    code = _Page(view_html.render(made.shown(pair))).code
    for column, side in enumerate(pair.sides):
        lines = [part for line in side.lines for run in line.runs for part in run.parts]
        wanted = "".join(view_text.mark(part) if part.kind == "char" else part.text for part in lines)
        assert code[str(column)] == wanted


def test_every_token_of_the_tree_is_once_in_the_row_of_a_page():
    pair = made.pair_view()
    assert _Page(view_html.render(made.shown(pair))).columns == list(range(len(pair.tokens.tree.tokens)))


def test_a_page_tells_the_layouts_numbers():
    pair = made.pair_view()
    [data] = _Page(view_html.render(made.shown(pair))).data
    told, tree = json.loads(data), pair.tokens.tree
    assert told["columns"] == [tree.tokens.tolist(), tree.depth.tolist(), tree.visible_until.tolist()]
    terms = np.stack([tree.source[tree.term], tree.target[tree.term], tree.slot], 1)
    assert [target[:3] for target in told["targets"]] == terms.tolist()
    assert [target[3] for target in told["targets"]] == pytest.approx(tree.weight.tolist())
    assert [target[4] for target in told["targets"]] == pytest.approx(tree.nll_weight.tolist(), rel=1e-3)
    assert [len(side) for side in told["sides"]] == [len(side.tokens) for side in pair.sides]


def test_a_page_needs_no_network_and_runs_no_script_but_its_own():
    page = view_html.render(made.shown(made.pair_view()))
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:|//)|@import|url\((?!#)", page)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    script = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)[-1]
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert html.unescape(policy) == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'"


def test_all_pictures_of_a_pair_have_one_scale():
    pair = made.pair_view()
    for drawing in view_html.drawings(pair):
        ends = [box.x + box.width for box in drawing.boxes]
        assert max(ends) == pytest.approx(100)
        lengths = {box.width for box in drawing.boxes if box.names.startswith("prompt")}
        [width] = {round(length, 6) for length in lengths}
        scale = len(pair.tokens.example.prompt_ids) + max(len(side.tokens) for side in pair.sides)
        assert width == pytest.approx(100 * len(pair.tokens.example.prompt_ids) / scale, abs=1e-5)


def _printed(pair: view.PairView, width: int, **changes) -> str:
    file = io.StringIO()
    view_terminal.paint(made.shown(pair), rich.console.Console(file=file, width=width, highlight=False, **changes))
    return file.getvalue()


def test_a_pipe_gets_marks_in_front_of_focus_lines():
    lines = _printed(made.pair_view("a = 1\nb = 2\nc = 3\n", "a = 1\nb = 3\nc = 3\nd = 4\n"), 80).splitlines()
    marked = [line.split(maxsplit=2) for line in lines if line.startswith(("+", "-"))]
    assert marked == [["+", "2", "b = 2"], ["-", "2", "b = 3"], ["-", "4", "d = 4"]]


def test_a_long_line_is_not_cut_in_a_pipe():
    long = "x = " + "1 + " * 60 + "1"
    assert long in _printed(made.pair_view(f"{long}\n", "x = 2\n"), 80)


def test_a_wide_terminal_shows_the_sides_side_by_side():
    pair = made.pair_view("a = 1\nb = 2\n", "a = 1\nb = 3\n")
    wide = _printed(pair, view_terminal.SIDE_BY_SIDE_FROM).splitlines()
    assert [line for line in wide if "b = 2" in line and "b = 3" in line]
    narrow = _printed(pair, view_terminal.SIDE_BY_SIDE_FROM - 1).splitlines()
    assert not [line for line in narrow if "b = 2" in line and "b = 3" in line]


def test_code_sends_no_control_sequence_to_the_terminal():
    assert not {"\x1b", "\u202e"} & set(_printed(made.pair_view(pair_id="id\x1b[2J"), 80))


def test_a_terminal_colours_exactly_the_focus():
    text = _printed(
        made.pair_view("a = 1\nb = 2\n", "a = 1\nb = 3\n"), 100, force_terminal=True, color_system="truecolor"
    )
    coloured = re.findall(r"\x1b\[38;2;255;255;255;48;2;([\d;]+)m([^\x1b]*)", text)
    assert "".join(piece for _, piece in coloured) == "b = 2b = 3"
    assert len({colour for colour, _ in coloured}) == 2


def test_pairs_without_tokens_are_shown_as_text():
    focus = focusing.find_focus(made.CHOSEN, made.REJECTED, made.focus_settings(), "p0")
    pair = view.of_text(tiny.pair(made.CHOSEN, made.REJECTED), focus)
    assert "".join(pair.rejected.text[place] for place in made.focus_places(pair.rejected.lines)) == "".join(
        made.REJECTED[start:end] for start, end in focus.rejected
    )
    page = view_html.render(made.shown(pair))
    assert made.EVIL not in page
    assert _Page(page).code["0"] == made.CHOSEN
