"""Whether two programs have one syntax tree, against the dumps of both."""

from __future__ import annotations

import ast
import inspect
import textwrap
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

from iterpref_jax.codeflow import filters

PIECES = ["a", "b ", "= ", "1", "0", "e5", ".", " - ", "(", ")", "\n", "  ", "'''", "'", "#", "\\", "if ", "x:", "in "]
MODULES = (ast, inspect, textwrap)


def _dump(code):
    try:
        return ast.dump(ast.parse(code))
    except (SyntaxError, ValueError):
        return None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x = 1000.0", "x = 1e3"),
        ("x = 16", "x = 0x10"),
        ("x = 1000", "x = 1_000"),
        ("x = 1.e5", "x = 100000."),
        ("y = x if 1else 2", "y = x if 1 else 2"),
        ("x = 'a' 'b'", 'x = "ab"'),
        ("x = 'e'", "x = '\\x65'"),
        ("if a:\n  b\nelif c:\n  d", "if a:\n  b\nelse:\n  if c:\n    d"),
        ("x = ℯ", "x = e"),
        ("x = (1 +\n 2)", "x = 1 + 2"),
        ("x = 1; y = 2", "x = 1\ny = 2"),
        ("x = a + \\\n b", "x = a + b"),
        ("x = a  # one", "x = a"),
    ],
)
def test_two_spellings_of_one_tree_are_the_same(one, other):
    assert _dump(one) == _dump(other) is not None
    assert filters.same_ast(f"a = 1\n{one}\n", f"a = 1\n{other}\n")


@hypothesis.given(st.lists(st.sampled_from(PIECES), max_size=12), st.integers(0, 12), st.sampled_from(PIECES))
@hypothesis.settings(max_examples=1000)
def test_programs_are_the_same_exactly_if_their_dumps_are(parts, place, added):
    one, other = "".join(parts), "".join([*parts[:place], added, *parts[place:]])
    assert filters.same_ast(one, other) is (_dump(one) == _dump(other) is not None)


@pytest.mark.parametrize("module", MODULES)
def test_a_program_is_the_same_when_it_is_written_anew_from_its_tree(module):
    # From the file: other packages put functions of their own into a module at run time, whose source nobody has.
    source = Path(module.__file__).read_text(encoding="utf-8")
    functions = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    assert functions
    for function in functions:
        code = ast.get_source_segment(source, function)
        assert filters.same_ast(code, ast.unparse(ast.parse(code))), code


@pytest.mark.parametrize("change", [("+ 1", "- 1"), ("value", "other"), ("1", "2")])
def test_a_changed_operator_name_or_number_is_found_without_parsing(change, monkeypatch):
    monkeypatch.setattr(filters, "_tree", lambda code: pytest.fail("parsed"))
    code = "def f(value):\n    '''Adds.'''\n    return value + 1\n"
    assert not filters.same_ast(code, code.replace(*change))
