"""The negative control: a program that does nothing must not pass."""

from __future__ import annotations

import ast


def stub_of(code: str) -> str:
    """Returns `code` with every function's body replaced by `return None`.

    Raises SyntaxError, and ValueError or RecursionError where the parser gives up.

    >>> print(stub_of("def add(a, b):\\n    return a + b"))
    def add(a, b):
        return None
    """
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [ast.Return(value=ast.Constant(value=None))]
    return ast.unparse(ast.fix_missing_locations(tree))
