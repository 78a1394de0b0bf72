"""From a model's answers to values; a ValueError says what is wrong in words that the model is told."""

from __future__ import annotations

import ast
import collections
import contextlib
import json
import re
from collections.abc import Callable
from typing import Any

from iterpref_jax.codeflow import extract, syntax
from iterpref_jax.codeflow.generate import features

MAX_INSTRUCTION = 8000
TASK = re.compile(r"<task>(.*?)(?:</task>|\Z)", re.DOTALL)
_DEFINITION = re.compile(r"^(?:async def|def|class)\s+(\w+)", re.MULTILINE)
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_ENDING = ("sys.exit", "os._exit", "os.abort", "unittest.main")
_NOT_LOOKED_INTO = (*_DEFINITIONS, ast.Lambda, ast.Try, ast.With)
SCORES = ("correctness", "completeness", "consistency")


def check_whole(prompt: str, text: str) -> None:
    """Raises ValueError for a task or a program that was cut at `max_tokens` before it came to its end."""
    if not ("</task>" in text if prompt == "instruction" else extract.code_of(text).how == "fence"):
        raise ValueError("it is cut off")


def instruction(text: str) -> str:
    """Returns what stands between <task> and </task>."""
    found = TASK.findall(text)
    task = found[-1].strip() if found else ""
    if not task:
        raise ValueError("there is no task between <task> and </task>")
    if len(task) > MAX_INSTRUCTION:
        raise ValueError(f"the task has {len(task)} characters; write at most {MAX_INSTRUCTION}")
    return task


def program(text: str) -> str:
    """Returns the program of an answer; it need not be right, or even parse: that is what debugging is for."""
    found = extract.code_of(text)
    if not found.code:
        raise ValueError(f"there is no program in it: {found.how}")
    if found.how == "unclosed fence" and not syntax.parses(found.code):
        raise ValueError("the program is cut off")
    return found.code


def test_writer(code: str, least: int, style: str) -> Callable[[str], str]:
    """Returns the parser of an answer with tests of `style` for `code`: they parse, check enough, do not end the
    process, and define none of its names."""
    taken = set(_DEFINITION.findall(code))

    def tests(text: str) -> str:
        found = program(text)
        try:
            tree = syntax.parsed(found)
        except ValueError as error:
            raise ValueError(f"the tests are no Python: {error}") from error
        again = sorted(taken & {node.name for node in tree.body if isinstance(node, _DEFINITIONS)})
        if again:
            raise ValueError(f"the tests define {again[0]} again, which is the program's")
        if ending := ending_line(tree, style):
            raise ValueError(f"the tests end the process in line {ending}; leave that out")
        checks = count_checks(tree)
        if checks < least:
            raise ValueError(f"the tests hold {checks} checks; write at least {least}")
        return found

    return tests


def count_checks(tree: ast.AST) -> int:
    """How many `assert` statements, `assert...(...)` calls and `raises(...)` blocks stand in a test file."""
    calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    names = [getattr(called, "id", None) or getattr(called, "attr", None) or "" for called in calls]
    asserts = sum(isinstance(node, ast.Assert) for node in ast.walk(tree))
    return asserts + sum(name.startswith("assert") or name == "raises" for name in names)


def ending_line(tree: ast.Module, style: str) -> int:
    """Returns the line outside of functions by which a test file ends the process that runs it, 0 without one.

    What nobody can tell from a program that ends it would be blamed on the program.
    """
    left = collections.deque[ast.AST](tree.body)
    while left:
        node = left.popleft()
        if isinstance(node, ast.Call) and _dotted(node.func) in _ENDING:
            return node.lineno
        if isinstance(node, ast.Raise) and _dotted(getattr(node.exc, "func", node.exc)) == "SystemExit":
            return node.lineno
        # Whoever expects an end catches it; only scripts run under the name of the main module.
        if not isinstance(node, _NOT_LOOKED_INTO) and (style == "script" or not _is_main(node)):
            left += ast.iter_child_nodes(node)
    return 0


def interface(code: str) -> str:
    """Returns the signatures and docstrings of what `code` defines at its top level, without any body.

    Of a program that does not parse, or whose definitions are too deep to write: the lines that begin a definition.

    >>> print(interface("import os\\nLIMIT = 3\\ndef f(x: int = 1) -> int:\\n    'Adds.'\\n    return x + LIMIT"))
    LIMIT = ...
    <BLANKLINE>
    def f(x: int=1) -> int:
        'Adds.'
        ...
    """
    tree = syntax.tree_of(code)
    if tree is not None:
        kept = [node for node in map(_outline, tree.body) if node is not None]
        with contextlib.suppress(RecursionError):
            outline = ast.unparse(ast.fix_missing_locations(ast.Module(kept, [])))
            # An escape in a docstring may stand for half a surrogate pair, which no request can carry.
            return outline.encode("utf-8", "backslashreplace").decode()
    return "\n".join(line for line in code.splitlines() if re.match(r"\s*(async def|def|class)\b", line))


def scores(text: str) -> dict[str, int]:
    """Returns the three scores of a test file, 1 to 5 each."""
    found = json_object(text)
    for name in SCORES:
        value = found.get(name)
        if isinstance(value, bool) or value not in (1, 2, 3, 4, 5):
            raise ValueError(f'"{name}" must be a whole number from 1 to 5, not {json.dumps(value)}')
    return {name: int(found[name]) for name in SCORES}


def differ(text: str) -> bool:
    """Returns whether the model found a difference in logic."""
    value = json_object(text).get("differ_in_logic")
    if not isinstance(value, bool):
        raise ValueError(f'"differ_in_logic" must be true or false, not {json.dumps(value)}')
    return value


def feature_tree(text: str) -> features.Tree:
    """Returns the tree of an answer."""
    return features.check(json_object(text), "the tree")


def json_object(text: str) -> dict[str, Any]:
    """Returns the JSON object of an answer."""
    found = extract.json_of(text)
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")
    return found


def _outline(node: ast.stmt) -> ast.stmt | None:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        docstring = node.body[:1] if ast.get_docstring(node) is not None else []
        node.body = [*docstring, _dots()]
        return node
    if isinstance(node, ast.ClassDef):
        kept = [_outline(child) for child in node.body if not _is_private(child)]
        docstring = node.body[:1] if ast.get_docstring(node) is not None else []
        node.body = [*docstring, *(child for child in kept if child is not None)] or [_dots()]
        return node
    if isinstance(node, ast.Assign | ast.AnnAssign):
        # A field without a value (of a dataclass, a named tuple) is an argument of the constructor.
        if node.value is not None:
            node.value = ast.Constant(...)
        return node
    return None


def _is_main(node: ast.AST) -> bool:
    """Whether it is `if __name__ == "__main__":`."""
    test = node.test if isinstance(node, ast.If) else None
    return isinstance(test, ast.Compare) and "__name__" in map(_dotted, (test.left, *test.comparators))


def _dotted(node: ast.AST | None) -> str:
    """Returns "name" or "name.attribute", "" of anything else."""
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}" if isinstance(node.value, ast.Name) else ""
    return node.id if isinstance(node, ast.Name) else ""


def _is_private(node: ast.stmt) -> bool:
    name = getattr(node, "name", "")
    return name.startswith("_") and not name.endswith("__")


def _dots() -> ast.stmt:
    return ast.Expr(ast.Constant(...))
