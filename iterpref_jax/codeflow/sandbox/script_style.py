"""The style "script", inside the child: setup, code and tests are one. A part of the harness that a request brings.

Standard library only; no import of ours.
"""

from __future__ import annotations

import _symtable  # type: ignore[import-not-found]
import builtins

MARK = "__checked__"
# Honest scripts have their own, and no test is decided by them.
HARMLESS = {"input", "print"}


def guarded(_, outcome) -> list:
    """Returns what a program may not replace besides builtins: there is no framework."""
    return []


def run(harness, sources: dict[str, str], outcome, intact) -> None:
    """Runs setup, code and tests as one script; a check is an `assert`, an `assert...(...)` call or, where there is
    none of these, a `raise`.

    Every check of setup and tests but a `raise` notes that it was run and held, so tests that are never reached
    (a loop over nothing that the program returns) are `no_tests`, not a pass.
    """
    space, seen, raises, before = harness.module("__main__"), set(), 0, set()
    space[MARK], space[harness.LOOK] = seen.add, outcome.look
    marked, names = 0, _Names(harness)
    try:
        for label in (harness.SETUP, harness.CODE, harness.TESTS):
            tree = compile(sources[label], label, "exec", harness.ONLY_AST, dont_inherit=True)
            if label != harness.CODE:
                names.note(tree)
                marked, more = mark_checks(tree, marked)
                raises += more
                harness.look_at_equals(tree)
            compiled = compile(tree, label, "exec", dont_inherit=True)  # type: ignore[arg-type]
            if label == harness.CODE:
                outcome.watch(compiled)
                before = set(space)
            elif label == harness.TESTS and (hidden := names.hidden(sources[harness.CODE], set(space) - before)):
                outcome.tamper(f"the code puts its own {', '.join(hidden)} in the place of what the tests call")
                return
            exec(compiled, space)
            if label == harness.CODE and not intact():
                outcome.tamper("the code replaced builtins when it was imported")
                return
    except AssertionError:
        outcome.run, outcome.passed = len(seen) + 1, len(seen)
        raise
    # A `raise` says nothing when it does not run, so it is a check where there is no other.
    outcome.run = outcome.passed = len(seen) if marked else raises
    if not outcome.run:
        outcome.status = "no_tests"


class _Names:
    """What setup and tests read by name, and what they give a value, anywhere in them."""

    def __init__(self, harness):
        self._walk, self._loaded, self._bound = harness.walk, set(), set()

    def note(self, tree) -> None:
        for node in self._walk(tree):
            kind = type(node).__name__
            if kind == "Name":
                (self._loaded if type(node.ctx).__name__ == "Load" else self._bound).add(node.id)
            elif kind != "keyword":
                self._bound.update(getattr(node, field, None) for field in ("name", "asname", "arg"))

    def hidden(self, code: str, made: set) -> list[str]:
        """Returns the builtins that the tests use and that the code has put others in the place of.

        `made` are the names that the code has made. Where builtins are all that the tests use of these, they are what
        is judged; and `from math import pow` is no forgery.
        """
        used = (self._loaded - self._bound) & made
        hidden = (used & set(vars(builtins))) - HARMLESS
        if not hidden or hidden == used:
            return []
        # What `symtable` is made of, without its imports.
        symbols = _symtable.symtable(code, "<code>", "exec").symbols
        return sorted(name for name in hidden if symbols.get(name, 0) & _symtable.DEF_LOCAL)


def mark_checks(tree, first: int) -> tuple[int, int]:
    """Puts `__checked__(n)` after every check of `tree`; returns the next n and the number of `raise` statements."""
    raises, stack = 0, [tree]
    while stack:
        node = stack.pop()
        for field in ("body", "orelse", "finalbody", "handlers", "cases"):
            children = getattr(node, field, None)
            if type(children) is not list:  # a lambda's body is an expression
                continue
            marked = []
            for child in children:
                marked.append(child)
                stack.append(child)
                raises += type(child).__name__ == "Raise"
                if _is_check(child):
                    marked.append(_mark(first, child))
                    first += 1
            setattr(node, field, marked)
    return first, raises


def _is_check(node) -> bool:
    if type(node).__name__ != "Expr":
        return type(node).__name__ == "Assert"
    called = getattr(node.value, "func", None)
    return (getattr(called, "id", None) or getattr(called, "attr", None) or "").startswith("assert")


def _mark(number: int, after):
    import _ast as nodes

    place = {"lineno": after.end_lineno, "col_offset": 0, "end_lineno": after.end_lineno, "end_col_offset": 0}
    called = nodes.Call(
        func=nodes.Name(id=MARK, ctx=nodes.Load(), **place),
        args=[nodes.Constant(value=number, kind=None, **place)],
        keywords=[],
        **place,
    )
    return nodes.Expr(value=called, **place)
