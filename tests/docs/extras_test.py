"""Extras of the package: each one that a message or a page tells people to install exists."""

import ast
import re

import pytest

from tests.docs.pages import ROOT

PLACES = ("iterpref_jax", "configs", "benchmarks", "docs", "launch", "README.md", "CONTRIBUTING.md", "EXPERIMENTS.md")
_NAMED = re.compile(r"(?:iterpref_jax|[ '\"]\.)\[([a-z0-9_]+(?:,[a-z0-9_]+)*)\]")


def extras():
    tree = ast.parse((ROOT / "setup.py").read_text())
    return next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "EXTRAS"
    )


def named():
    """(extra, file) of all that are named."""
    files = [file for place in PLACES for file in ([ROOT / place] if "." in place else (ROOT / place).rglob("*"))]
    texts = {file: file.read_text() for file in files if file.suffix in (".py", ".md", ".sh") or "Docker" in file.name}
    return {
        (extra, str(file.relative_to(ROOT)))
        for file, text in texts.items()
        for found in _NAMED.findall(text)
        for extra in found.split(",")
    }


@pytest.mark.parametrize(("extra", "file"), sorted(named()))
def test_an_extra_that_is_named_exists(extra, file):
    assert extra in extras()


def test_the_extra_of_buckets_is_among_those_that_are_named():
    assert ("gcs", "iterpref_jax/train/remote.py") in named()
