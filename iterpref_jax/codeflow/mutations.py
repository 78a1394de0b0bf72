"""Bugs that people and models write, as small edits of a program's text.

Each mutation looks at one node of the syntax tree and proposes edits of that node's own segment of the source, so the
rest of the text keeps its formatting and the diff stays a few lines.
"""

from __future__ import annotations

import ast
import builtins
import dataclasses
import itertools
import keyword
import re
from collections.abc import Callable, Iterable, Iterator

# What an edit replaces: [start, end) in characters, and with what.
Change = tuple[int, int, str]
Names = tuple[str, ...]
Propose = Callable[[ast.AST, "Source", Names], Iterator[Change]]

MAX_LINES = 6

OPERATORS = {
    "+": "-", "-": "+", "*": "+", "/": "*", "//": "/", "%": "//", "**": "*",
    "&": "|", "|": "&", "^": "|", "<<": ">>", ">>": "<<",
}  # fmt: skip
COMPARISONS = {
    "<": ("<=", ">"), "<=": ("<", ">="), ">": (">=", "<"), ">=": (">", "<="), "==": ("!=",), "!=": ("==",),
    "in": ("not in",), "not in": ("in",), "is": ("is not",), "is not": ("is",),
}  # fmt: skip
METHODS = {
    "append": "extend", "extend": "append", "lower": "upper", "upper": "lower", "add": "discard", "remove": "add",
    "startswith": "endswith", "endswith": "startswith", "strip": "lstrip", "lstrip": "rstrip", "rstrip": "lstrip",
    "find": "rfind", "index": "find", "keys": "values", "values": "keys", "items": "keys", "islower": "isupper",
    "isupper": "islower", "isdigit": "isalpha", "isalpha": "isdigit", "union": "intersection", "intersection": "union",
    "update": "add", "join": "split", "split": "splitlines", "pop": "popleft", "popleft": "pop", "sort": "reverse",
    "reverse": "sort", "floor": "ceil", "ceil": "floor", "sqrt": "log", "get": "pop", "count": "index", "read": "tell",
    "insert": "append", "partition": "rpartition", "rpartition": "partition", "numerator": "denominator",
    "denominator": "numerator",
}  # fmt: skip
FUNCTIONS = {
    "min": "max", "max": "min", "any": "all", "all": "any", "sum": "max", "len": "sum", "sorted": "list",
    "list": "sorted", "set": "list", "int": "float", "float": "int", "str": "repr", "ord": "chr", "chr": "ord",
    "abs": "int", "round": "int", "enumerate": "list", "reversed": "list", "zip": "enumerate", "range": "list",
    "isinstance": "issubclass",
}  # fmt: skip
GROWING = {"append", "extend", "add", "insert", "pop", "popleft", "appendleft", "remove", "update", "write", "reverse"}
PLAIN = (ast.Name, ast.Call, ast.Attribute, ast.Subscript)
SIMPLE = (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Expr, ast.Delete, ast.Raise, ast.Assert, ast.Break)
BLOCKS = ("body", "orelse", "finalbody")
# Edits here change nothing that a test could see, or have wrong positions (f-strings before Python 3.12).
UNSEEN_FIELDS = {"annotation", "returns", "decorator_list", "type_params"}


@dataclasses.dataclass(frozen=True, kw_only=True, order=True)
class Edit:
    """Characters [start, end) become `text`; `mutation` is the bug's name."""

    start: int
    end: int
    text: str
    mutation: str

    def touches(self, other: Edit) -> bool:
        return self.start <= other.end and other.start <= self.end


class Source:
    """A program's text with its syntax tree; tells where in the text a node lies. Raises SyntaxError."""

    def __init__(self, code: str):
        self.code, self.tree = code, ast.parse(code)
        self.lines = re.findall(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+", code)
        self._starts = [0]
        for line in self.lines:
            self._starts.append(self._starts[-1] + len(line))
        self.identifiers = {node.id for node in ast.walk(self.tree) if isinstance(node, ast.Name)}

    def at(self, line: int, column: int) -> int:
        """Offset in characters of a position as `ast` gives it: lines from 1, columns in UTF-8 bytes."""
        return self._starts[line - 1] + len(self.lines[line - 1].encode()[:column].decode())

    def start(self, node: ast.AST) -> int:
        return self.at(node.lineno, node.col_offset)  # type: ignore[attr-defined]

    def end(self, node: ast.AST) -> int:
        return self.at(node.end_lineno, node.end_col_offset)  # type: ignore[attr-defined]

    def text(self, node: ast.AST) -> str:
        return self.code[self.start(node) : self.end(node)]

    def between(self, left: ast.AST, right: ast.AST) -> tuple[int, int, str]:
        start, end = self.end(left), self.start(right)
        return start, end, self.code[start:end]

    def own_lines(self, first: ast.AST, last: ast.AST) -> tuple[int, int] | None:
        """The whole lines from `first` to `last`, or None if they share them with something else."""
        start, end = self._starts[first.lineno - 1], self._starts[last.end_lineno]  # type: ignore[attr-defined]
        after = self.code[self.end(last) : end].strip()
        if self.code[start : self.start(first)].strip() or (after and not after.startswith("#")):
            return None
        return start, end


def find_edits(code: str) -> dict[str, list[Edit]]:
    """Returns every edit of every mutation, in the order of the text; raises SyntaxError."""
    source = Source(code)
    found: dict[str, set[Edit]] = {name: set() for name in MUTATIONS}
    for node, names in itertools.chain([(source.tree, ())], _nodes(source.tree, ())):
        for mutation, propose in MUTATIONS.items():
            for start, end, text in propose(node, source, names):
                if code[start:end] != text:
                    found[mutation].add(Edit(start=start, end=end, text=text, mutation=mutation))
    return {name: sorted(edits) for name, edits in found.items()}


def apply_edits(code: str, edits: Iterable[Edit]) -> str:
    """Returns `code` with `edits` made; they must not touch each other.

    >>> apply_edits("a + b", [Edit(start=2, end=3, text="-", mutation="operator")])
    'a - b'
    """
    for edit in sorted(edits, reverse=True):
        code = code[: edit.start] + edit.text + code[edit.end :]
    return code


def _nodes(node: ast.AST, names: Names) -> Iterator[tuple[ast.AST, Names]]:
    """Yields the nodes below `node`, each with the local names of the function around it."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        names = _locals(node)
    for field, value in ast.iter_fields(node):
        if field in UNSEEN_FIELDS:
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not isinstance(child, ast.JoinedStr) and not _is_text(child):
                yield child, names
                yield from _nodes(child, names)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _locals(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Names:
    found = {node.arg for node in ast.walk(function.args) if isinstance(node, ast.arg)}
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return tuple(sorted(found - {"_"}))


def _operator(node: ast.AST, source: Source, names: Names) -> Iterator[Change]:
    if isinstance(node, ast.BinOp):
        start, _, gap = source.between(node.left, node.right)
    elif isinstance(node, ast.AugAssign):
        start, _, gap = source.between(node.target, node.value)
    else:
        return
    match = re.fullmatch(r"[\s)]*([-+*/%&|^<>]+)=?[\s(]*", gap)
    if match and match[1] in OPERATORS:
        yield start + match.start(1), start + match.end(1), OPERATORS[match[1]]


def _comparison(node: ast.AST, source: Source, names: Names) -> Iterator[Change]:
    if not isinstance(node, ast.Compare):
        return
    sides = [node.left, *node.comparators]
    for left, right in itertools.pairwise(sides):
        start, _, gap = source.between(left, right)
        match = re.fullmatch(r"[\s)]*([<>=!]+|not\s+in|in|is\s+not|is)[\s(]*", gap)
        for other in COMPARISONS.get(" ".join(match[1].split()), ()) if match else ():
            yield start + match.start(1), start + match.end(1), other  # type: ignore[union-attr]


def _and_or(node: ast.AST, source: Source, names: Names) -> Iterator[Change]:
    if not isinstance(node, ast.BoolOp):
        return
    for left, right in itertools.pairwise(node.values):
        start, _, gap = source.between(left, right)
        if match := re.fullmatch(r"[\s)]*(and|or)[\s(]*", gap):
            yield start + match.start(1), start + match.end(1), "or" if match[1] == "and" else "and"


def _off_by_one(node: ast.AST, source: Source, names: Names) -> Iterator[Change]:
    if isinstance(node, ast.Constant) and type(node.value) is int and source.text(node) == str(node.value):
        start, end = source.start(node), source.end(node)
        yield start, end, str(node.value + 1)
        if node.value:
            yield start, end, str(node.value - 1)


def _wrong_constant(node: ast.AST, source: Source, names: Names) -> Iterator[Change]:
    others = {True: "False", False: "True", None: "False"}
    if isinstance(node, ast.Constant) and (node.value is None or type(node.value) is bool):
        yield source.start(node), source.end(node), others[node.value]


def _wrong_string(node: ast.AST, source: Source, names: Names) -> Iterator[Change]:
    if not (isinstance(node, ast.Constant) and type(node.value) is str):
        return
    text, value = source.text(node), node.value
    # Plain literals only: no prefix, escape, triple quote or implicit concatenation.
    if len(text) < 2 or text[0] not in "'\"" or text[1:-1] != value:
        return
    for other in {value.swapcase(), value[:-1] if value else " "} - {value}:
        yield source.start(node), source.end(node), text[0] + other + text[0]


def _wrong_name(node: ast.AST, source: Source, names: Names) -> Iterator[Change]:
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in names:
        for other in names:
            yield source.start(node), source.end(node), other


def _misspelt_name(node: ast.AST, source: Source, names: Names) -> Iterator[Change]:
    if not (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in names and len(node.id) > 2):
        return
    word = node.id
    for other in (word[:-1], word + "s", word[:-2] + word[-1] + word[-2]):
        known = other in source.identifiers or other in names or hasattr(builtins, other) or keyword.iskeyword(other)
        if not known:
            yield source.start(node), source.end(node), other


def _wrong_call(node: ast.AST, source: Source, names: Names) -> Iterator[Change]:
    if isinstance(node, ast.Attribute) and node.attr in METHODS:
        end = source.end(node)
        yield end - len(node.attr), end, METHODS[node.attr]
    called = node.func if isinstance(node, ast.Call) else None
    if isinstance(called, ast.Name) and called.id in FUNCTIONS and called.id not in names:
        yield source.start(called), source.end(called), FUNCTIONS[called.id]


def _swapped_arguments(node: ast.AST, source: Source, names: Names) -> Iterator[Change]:
    if not isinstance(node, ast.Call):
        return
    for left, right in itertools.pairwise(node.args):
        if not isinstance(left, ast.Starred) and not isinstance(right, ast.Starred):
            yield from _swap(left, right, source)


def _swapped_operands(node: ast.AST, source: Source, names: Names) -> Iterator[Change]:
    ordered = (ast.Sub, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ordered):
        yield from _swap(node.left, node.right, source)


def _swap(left: ast.AST, right: ast.AST, source: Source) -> Iterator[Change]:
    _, _, gap = source.between(left, right)
    if not re.search(r"[()#]", gap):
        yield source.start(left), source.end(right), source.text(right) + gap + source.text(left)


def _negated_condition(node: ast.AST, source: Source, names: Names) -> Iterator[Change]:
    conditions = [node.test] if isinstance(node, ast.If | ast.While | ast.IfExp) else getattr(node, "ifs", [])
    for test in conditions:
        start, end, text = source.start(test), source.end(test), source.text(test)
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            yield start, end, source.text(test.operand)
        elif isinstance(test, PLAIN):
            yield start, end, f"not {text}"
        else:
            yield start, end, f"not ({text})"


def _swapped_branches(node: ast.AST, source: Source, names: Names) -> Iterator[Change]:
    if isinstance(node, ast.IfExp):
        middle = source.between(node.body, node.orelse)[2]
        if "(" not in middle and ")" not in middle:
            yield (
                source.start(node.body),
                source.end(node.orelse),
                source.text(node.orelse) + middle + source.text(node.body),
            )
    elif isinstance(node, ast.If) and node.orelse and node.end_lineno - node.lineno <= MAX_LINES:  # type: ignore[operator]
        first = source.own_lines(node.body[0], node.body[-1])
        second = source.own_lines(node.orelse[0], node.orelse[-1])
        # An `elif` starts at the column of its `if`.
        if first and second and node.orelse[0].col_offset == node.body[0].col_offset:
            blocks = source.code[slice(*first)], source.code[slice(*second)]
            if blocks[1].endswith("\n"):
                yield first[0], second[1], blocks[1] + source.code[first[1] : second[0]] + blocks[0]


def _wrong_bound(node: ast.AST, source: Source, names: Names) -> Iterator[Change]:
    bounds: list[ast.expr | None] = []
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range":
        bounds = list(node.args[:2])
        if len(node.args) == 1:
            start = source.start(node.args[0])
            yield start, start, "1, "
    elif isinstance(node, ast.Slice):
        bounds = [node.lower, node.upper]
    for bound in bounds:
        sum_of = isinstance(bound, ast.BinOp) and isinstance(bound.op, ast.Add | ast.Sub | ast.Mult)
        if bound is not None and (sum_of or isinstance(bound, PLAIN)):
            for tail in (" - 1", " + 1"):
                yield source.start(bound), source.end(bound), source.text(bound) + tail


def _missing_return(node: ast.AST, source: Source, names: Names) -> Iterator[Change]:
    if isinstance(node, ast.Return) and node.value is not None and not isinstance(node.value, ast.Constant):
        word = re.compile(r"return[ \t]*").match(source.code, source.start(node))
        if word:
            yield word.start(), word.end(), ""


def _missing_import(node: ast.AST, source: Source, names: Names) -> Iterator[Change]:
    yield from _dropped(node, source, (ast.Import, ast.ImportFrom))


def _dropped_statement(node: ast.AST, source: Source, names: Names) -> Iterator[Change]:
    if isinstance(node, ast.Module | ast.ClassDef):
        return
    yield from _dropped(node, source, (*SIMPLE, ast.If, ast.For, ast.While, ast.Continue))


def _dropped(node: ast.AST, source: Source, kinds: tuple[type[ast.AST], ...]) -> Iterator[Change]:
    for field in BLOCKS:
        block = getattr(node, field, None)
        if not isinstance(block, list):  # a lambda's body is an expression
            continue
        for statement in block:
            lines = source.own_lines(statement, statement)
            short = statement.end_lineno - statement.lineno < MAX_LINES
            if not isinstance(statement, kinds) or _is_text(statement) or not lines or not short:
                continue
            if len(block) > 1:
                yield *lines, ""
            else:
                yield source.start(statement), source.end(statement), "pass"


def _duplicated_statement(node: ast.AST, source: Source, names: Names) -> Iterator[Change]:
    if not isinstance(node, ast.AugAssign | ast.Expr | ast.Assign) or node.end_lineno != node.lineno:
        return
    if isinstance(node, ast.Expr):
        called = node.value.func if isinstance(node.value, ast.Call) else None
        changes = isinstance(called, ast.Attribute) and called.attr in GROWING
    else:
        changes = isinstance(node, ast.AugAssign) or _reads_itself(node)
    lines = source.own_lines(node, node)
    if changes and lines:
        line = source.code[slice(*lines)]
        yield *lines, line + ("" if line.endswith("\n") else "\n") + line


def _reads_itself(node: ast.Assign) -> bool:
    targets = {name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return any(isinstance(name, ast.Name) and name.id in targets for name in ast.walk(node.value))


MUTATIONS: dict[str, Propose] = {
    "operator": _operator,
    "comparison": _comparison,
    "and_or": _and_or,
    "off_by_one": _off_by_one,
    "wrong_constant": _wrong_constant,
    "wrong_string": _wrong_string,
    "wrong_name": _wrong_name,
    "misspelt_name": _misspelt_name,
    "wrong_call": _wrong_call,
    "wrong_bound": _wrong_bound,
    "swapped_arguments": _swapped_arguments,
    "swapped_operands": _swapped_operands,
    "swapped_branches": _swapped_branches,
    "negated_condition": _negated_condition,
    "missing_return": _missing_return,
    "missing_import": _missing_import,
    "dropped_statement": _dropped_statement,
    "duplicated_statement": _duplicated_statement,
}
