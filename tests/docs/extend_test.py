"""The code of the page on extending runs, and what it adds works."""

import math

import jax.numpy as jnp
import pytest

from iterpref_jax.models.families import FAMILIES
from iterpref_jax.objectives import links, weights
from tests.docs.pages import DOCS, ROOT, blocks


@pytest.fixture(scope="module")
def page():
    """The names that the page's code makes; its additions are taken back."""
    space = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(links, "LINKS", dict(links.LINKS))
        patch.setattr(weights, "RECIPES", dict(weights.RECIPES))
        for block in blocks((DOCS / "extend.md").read_text()):
            assert block.language == "python"
            exec(block.text, space)
        yield space


def test_the_recipe_of_the_page_is_found(page):
    assert weights.find_recipe("symmetric_token").focus_mode == "token"


def test_the_link_of_the_page_gives_the_number_computed_by_hand(page):
    settings = links.LinkSettings(
        name="squared_hinge", beta=0.5, label_smoothing=0.0, simpo_gamma=0.0, dpop_lambda=0.0, discopop_tau=0.0
    )
    # Log-ratios 1 and 0.4: the margin is 0.3, which lacks 0.7.
    scores = links.Scores(*(jnp.array([value]) for value in (-12.0, -9.0, 1.0, 0.4, 6.0, 4.0)))
    assert math.isclose(float(links.make_link(settings)(scores)[0]), 0.49, rel_tol=1e-6)


def test_the_sandbox_of_the_page_tells_right_from_wrong(page):
    assert page["verdicts"] == {"right": "pass", "wrong": "fail"}


def test_the_families_of_the_page_are_those_of_the_readme(page):
    readme = (ROOT / "README.md").read_text()
    assert {name for name in FAMILIES if f"`{name}`" not in readme} == set()
