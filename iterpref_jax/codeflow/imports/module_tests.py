"""Test files that import the program: what they import, and how they become tests of the module `solution`."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator

# Of the sandbox's style "unittest".
MODULE = "solution"


def imported(tree: ast.AST, package: str) -> set[str]:
    """Returns the dotted names that are imported: `from a import b` gives `a` and `a.b`.

    `package` is the dotted folder of the file, "" at the top: relative imports count from there.
    """
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, package)
            names.update(name for name in (base, *(f"{base}.{alias.name}".lstrip(".") for alias in node.names)) if name)
    return names


def plain_test_functions(tree: ast.Module) -> list[str] | None:
    """Returns the test functions of a module that need no runner, or None if some need pytest.

    They take no argument, wear no decorator and stand in no class.
    """
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    tests = [node for node in functions if node.name.startswith("test")]
    is_plain = all(isinstance(node, ast.FunctionDef) and not _needs(node) for node in tests)
    in_class = any(isinstance(node, ast.ClassDef) and node.name.startswith("Test") for node in tree.body)
    return [node.name for node in tests] if is_plain and not in_class and "pytest" not in imported(tree, "") else None


def is_unittest(tree: ast.Module) -> bool:
    """Whether a module holds classes of unittest's."""
    bases = (ast.unparse(base) for node in tree.body if isinstance(node, ast.ClassDef) for base in node.bases)
    return any(base.endswith("TestCase") for base in bases)


def as_module_tests(tests: str, tree: ast.Module, *, names: Iterable[str] = (), package: str = "") -> tuple[str, str]:
    """Returns tests that find the program under each of `names`, and their style: "unittest", or "pytest" if need be.

    Plain test functions become methods of a test case.
    """
    functions = [] if is_unittest(tree) else plain_test_functions(tree)
    parts = ["".join(_prelude(names, package)), _after_future(tests)]
    if functions:
        methods = "".join(f"    {name} = staticmethod({name})\n" for name in functions)
        parts.append(f"\n\nimport unittest\n\n\nclass PlainTests(unittest.TestCase):\n{methods}")
    return "".join(parts), "pytest" if functions is None else "unittest"


def doctests(code: str) -> str:
    """Returns tests of the style "unittest" that run the examples in the docstrings of `code`; "" if there are none.

    Raises SyntaxError, and ValueError or RecursionError where the parser gives up.
    """
    found = [
        (getattr(node, "name", "module"), text)
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module | ast.AsyncFunctionDef)
        and ">>>" in (text := ast.get_docstring(node) or "")
    ]
    return _DOCTESTS.replace("EXAMPLES", repr(found)) if found else ""


_DOCTESTS = """\
import doctest
import unittest

import solution


class Doctests(unittest.TestCase):
    def test_examples(self):
        for name, text in EXAMPLES:
            runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
            said = []
            test = doctest.DocTestParser().get_doctest(text, dict(vars(solution)), name, None, 0)
            runner.run(test, out=said.append)
            self.assertFalse(runner.failures, "".join(said)[-400:])
"""


def _needs(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    arguments = node.args
    return bool(node.decorator_list or arguments.args or arguments.posonlyargs or arguments.kwonlyargs)


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parts = package.split(".") if package else []
    kept = parts[: len(parts) - node.level + 1] if node.level <= len(parts) else []
    return ".".join([*kept, *([node.module] if node.module else [])])


def _prelude(names: Iterable[str], package: str) -> Iterator[str]:
    """Puts the program into `sys.modules` under the names that the tests use, with the packages above it."""
    if package:
        yield f"__package__ = {package!r}\n"
    for name in sorted(set(names) - {MODULE}):
        *above, last = name.split(".")
        yield f"import sys, types, {MODULE}\n"
        for depth in range(len(above)):
            parent = ".".join(above[: depth + 1])
            yield f"sys.modules.setdefault({parent!r}, types.ModuleType({parent!r}))\n"
        yield f"sys.modules[{name!r}] = {MODULE}\n"
        if above:
            yield f"setattr(sys.modules[{'.'.join(above)!r}], {last!r}, {MODULE})\n"


def _after_future(tests: str) -> str:
    # These must come first in a file, and tests rely on none of them.
    lines = tests.splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("from __future__ import"))
