"""Trees of features, from which tasks are drawn (after EpiCoder, arXiv 2501.04694).

A tree is nested JSON: an object names features, a number is how often a leaf occurs. What is drawn follows these
frequencies, flattened or sharpened by a temperature; a model may extend the tree.
"""

from __future__ import annotations

import importlib.resources
import json
import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iterpref_jax.errors import UserError

Tree = dict[str, Any]
Path_ = tuple[str, ...]
MAX_NAME, MAX_DEPTH = 80, 16
# What one question to a model shows of the tree.
SHOWN_BRANCHES, SHOWN_LEAVES = 2, 6


def load(path: str) -> Tree:
    """Returns the tree of a JSON file; "" is the one that the package ships.

    Raises:
        UserError: no such file, no JSON, or no tree; the message names the place in it.
    """
    if not path:
        text = (importlib.resources.files("iterpref_jax.codeflow.generate") / "features.json").read_text(
            encoding="utf-8"
        )
        return check(json.loads(text), "features.json")
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"generate.features: {path}: there is no such file; leave it empty for the shipped tree"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a JSON file: {error}") from error
    try:
        return check(content, path)
    except ValueError as error:
        raise UserError(f"{error}; a tree is an object of objects, a leaf a number above 0") from error


def check(content: Any, place: str, depth: int = MAX_DEPTH) -> Tree:
    """Returns `content` if it is a tree of at most `depth` levels; raises ValueError that says where it is none."""
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{place}: wanted an object with features, got {json.dumps(content)[:60]}")
    if not depth:
        raise ValueError(f"{place[:200]}: a tree has at most {MAX_DEPTH} levels")
    for name, below in content.items():
        where = f"{place}: {name}"
        if not name.strip() or len(name) > MAX_NAME or "\n" in name:
            raise ValueError(f"{where}: a name is one line of 1 to {MAX_NAME} characters")
        if isinstance(below, bool) or not isinstance(below, int | float):
            check(below, where, depth - 1)
        elif not 0 < below < math.inf:
            raise ValueError(f"{where}: a frequency must be a number above 0, got {below}")
    return content


def frequency(below: Any) -> float:
    """How often a feature occurs: a leaf's own number, or the sum of what is below it."""
    if isinstance(below, dict):
        return sum(frequency(branch) for branch in below.values())
    return float(below)


def leaves(tree: Mapping[str, Any]) -> int:
    """How many leaves a tree has."""
    return sum(leaves(below) if isinstance(below, dict) else 1 for below in tree.values())


def sample(tree: Tree, count: int, temperature: float, rng: random.Random) -> list[Path_]:
    """Returns `count` different features as their paths from the root, fewer if the tree has no more.

    On every level a branch is drawn with probability in proportion to frequency ** (1 / temperature): at 1 as in real
    programs, above it rare ones come more often, below it less.
    """
    rest, found = json.loads(json.dumps(tree)), []
    while rest and len(found) < count:
        path = _draw(rest, temperature, rng)
        found.append(path)
        _remove(rest, path)
    return found


def part(tree: Tree, rng: random.Random) -> Tree:
    """Returns a small part of the tree that a model can be asked to extend: some branches with some of their leaves.

    All branches are equally likely here: what is rare is where the tree is thin.
    """
    if not all(isinstance(below, dict) for below in tree.values()):
        names = rng.sample(sorted(tree), min(SHOWN_LEAVES, len(tree)))
        return {name: part(tree[name], rng) if isinstance(tree[name], dict) else tree[name] for name in sorted(names)}
    names = rng.sample(sorted(tree), min(SHOWN_BRANCHES, len(tree)))
    return {name: part(tree[name], rng) for name in sorted(names)}


def merge(tree: Tree, addition: Tree) -> Tree:
    """Returns `tree` with what is new in `addition`; what both have stays as it is in `tree`, but a leaf that got
    features below it becomes a branch, whose leaves share its frequency."""
    merged = dict(tree)
    for name, below in addition.items():
        old = merged.get(name)
        if old is None:
            merged[name] = below
        elif isinstance(old, dict) and isinstance(below, dict):
            merged[name] = merge(old, below)
        elif isinstance(below, dict):
            merged[name] = _scaled(below, frequency(old) / frequency(below))
    return merged


def _scaled(tree: Tree, factor: float) -> Tree:
    return {
        name: _scaled(below, factor) if isinstance(below, dict) else round(below * factor, 3) or 0.001
        for name, below in tree.items()
    }


def _draw(tree: Tree, temperature: float, rng: random.Random) -> Path_:
    path: list[str] = []
    level: Any = tree
    while isinstance(level, dict):
        names = list(level)
        # Logarithms, because a power of a large frequency at a low temperature overflows.
        logs = [math.log(frequency(level[name])) / temperature for name in names]
        weights = [math.exp(value - max(logs)) for value in logs]
        path.append(rng.choices(names, weights)[0])
        level = level[path[-1]]
    return tuple(path)


def _remove(tree: Tree, path: Path_) -> None:
    name, *below = path
    if below:
        _remove(tree[name], tuple(below))
    if not below or not tree[name]:
        del tree[name]
