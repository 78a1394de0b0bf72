"""The committed drawings are what their script draws, and say what the package computes."""

import importlib.util
import re

import numpy as np
import pytest

from tests.docs.pages import DOCS


@pytest.fixture(scope="module")
def draw():
    spec = importlib.util.spec_from_file_location("draw", DOCS / "figures" / "draw.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_drawings_are_those_of_the_script(draw):
    drawn = draw.drawings()
    assert {path.name for path in (DOCS / "figures").glob("*.svg")} == set(drawn)
    for name, drawing in drawn.items():
        assert (DOCS / "figures" / name).read_text() == drawing, "run python docs/figures/draw.py"


def test_the_versions_in_the_drawings_have_the_verdicts_that_they_are_shown_with(draw):
    def answers(code):
        space = {}
        exec(code, space)
        return space["median"]([3, 1, 2]), space["median"]([4, 1, 2, 3])

    assert answers(draw.LAST) == (2, 2.5)
    assert answers(draw.FIRST) != (2, 2.5)
    assert answers(draw.SECOND) != (2, 2.5)


def test_only_the_two_wrong_lines_carry_weight_under_target_dpo(draw):
    example = draw.make_pair(draw.LAST, draw.SECOND, {}).example
    words = [draw.SECOND[slice(*span)] for span in draw.words(draw.SECOND)]
    focus = "".join(word for word, marked in zip(words, example.rejected_focus, strict=True) if marked)
    assert focus == "    low = values[middle]\n    high = values[middle + 1]\n"
    assert np.count_nonzero(example.rejected_focus) < len(words)


def test_a_drawing_follows_the_pages_colours_and_takes_no_id(draw):
    for drawing in draw.drawings().values():
        assert "[data-md-color-scheme=slate]" in drawing
        assert not re.search(r"\sid=|#(?!\w{6}[;}])", drawing)
        assert "\n\n" not in drawing, "an empty line ends a block of HTML in Markdown"
