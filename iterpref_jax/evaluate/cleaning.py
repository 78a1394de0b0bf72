"""From a model's text to the program that is judged, as each benchmark's own tools do it.

EvalPlus (0.3.1, `sanitize`) keeps the longest span of lines that parses, and of it the imports and the definitions that
the entry point reaches. It uses tree-sitter on text that parses already, so `ast` finds the same; decorated
definitions, and functions that return nothing, are dropped there and so are here.
"""

from __future__ import annotations

import ast
import bisect
import codeop
import heapq
import warnings
from collections.abc import Iterator

from iterpref_jax.evaluate.prompts import base_text
from iterpref_jax.evaluate.tasks import Benchmark, Task

# With this flag the parser says so where text ends too early to be wrong, as the interpreter's prompt wants to know.
_MAY_GO_ON: int = vars(codeop)["PyCF_ALLOW_INCOMPLETE_INPUT"]
# What the parser raises for text that is no program.
_UNPARSED = (SyntaxError, ValueError, MemoryError, RecursionError)


def program(benchmark: Benchmark, task: Task, style: str, text: str) -> str:
    """Returns the program of a model's answer `text`; "" if there is none."""
    if benchmark.clean == "last_fence":
        return last_fence(text) if style in ("chat", "raw") and "```" in text else text.strip()
    # EvalPlus' generators do so, whatever the style.
    whole = text.replace("\t", "    ")
    if style == "base":
        whole = base_text(task) + whole
    if benchmark.clean == "bigcodebench":
        return sanitized(whole.strip(), task.entry_point, needs_return=False)
    return sanitized(whole, task.entry_point)


def completed(task: Task, completion: str) -> str:
    """Returns the program of a stored completion, as EvalPlus reads one: behind the whole prompt, not cleaned."""
    return task.prompts.code + completion


def last_fence(text: str) -> str:
    """Returns what stands between the last two lines with a fence, as LiveCodeBench does; "" without two.

    >>> last_fence("It is\\n```python\\nx = 1\\n```\\nas you see")
    'x = 1'
    """
    lines = text.split("\n")
    fences = [number for number, line in enumerate(lines) if "```" in line]
    return "\n".join(lines[fences[-2] + 1 : fences[-1]]) if len(fences) > 1 else ""


def sanitized(text: str, entry_point: str, *, needs_return: bool = True) -> str:
    """Returns what EvalPlus' `sanitize` returns; with `needs_return` False, BigCodeBench's."""
    span = longest_span(text)
    kept = _reachable(span, entry_point, needs_return)
    if not needs_return:
        kept = _without_outer_lines(kept, entry_point)
    return kept.strip() or span


def longest_span(text: str) -> str:
    """Returns the lines in a row, at least two, that parse and of which the most are not blank; the first such."""
    lines = text.split("\n")
    filled = [0]
    for line in lines:
        filled.append(filled[-1] + bool(line.strip()))
    # (- lines that are not blank, first line): a bound until the start's last end is known.
    spans = [(filled[start] - filled[-1], start) for start in range(len(lines))]
    heapq.heapify(spans)
    last: dict[int, int] = {}
    while spans and spans[0][0] < 0:
        size, start = heapq.heappop(spans)
        if start not in last:
            last[start] = _last_end(lines, start)
        bound = filled[start] - filled[last[start]]
        if size < bound:
            heapq.heappush(spans, (bound, start))
            continue
        wanted = filled[start] - size
        first = max(bisect.bisect_left(filled, wanted), start + 2)
        for end in range(first, min(bisect.bisect_right(filled, wanted) - 1, last[start]) + 1):
            if _parsed("\n".join(lines[start:end])) is not None:
                return "\n".join(lines[start:end])
        heapq.heappush(spans, (size + 1, start))
    return lines[0]


def _last_end(lines: list[str], start: int) -> int:
    """Returns an end such that lines from `start` to any later end do not parse.

    Prose ends within a line or two. Without this every line of a long answer that is no program would be parsed up to
    every other.
    """
    alive, step = start, 1
    while alive < len(lines):
        end = min(alive + step, len(lines))
        if not _is_dead(lines[start:end]):
            alive, step = end, 2 * step
        elif step == 1:
            break
        else:
            step = max(step // 4, 1)
    return alive


def _is_dead(lines: list[str]) -> bool:
    """Whether no program begins with these lines: the parser stops before it has seen the last of them."""
    try:
        _parse("\n".join(lines) + "\n", _MAY_GO_ON)
    except SyntaxError as error:
        return error.msg != "incomplete input"
    except _UNPARSED:
        return True
    return False


def _parsed(text: str) -> ast.Module | None:
    try:
        return _parse(text)
    except _UNPARSED:
        return None


def _parse(text: str, flags: int = 0) -> ast.Module:
    with warnings.catch_warnings():
        # Of escapes in strings, which are the program's affair.
        warnings.simplefilter("ignore")
        return compile(text, "<answer>", "exec", ast.PyCF_ONLY_AST | flags, dont_inherit=True)


def _reachable(text: str, entry_point: str, needs_return: bool) -> str:
    tree = _parsed(text)
    if tree is None:
        return ""
    imports, definitions = [], {}
    for node in tree.body:
        if isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and node.module != "__future__"):
            imports.append(node)
        else:
            name = _name(node, needs_return)
            if name and name not in definitions:
                definitions[name] = node
    wanted = _closure(entry_point, definitions)
    kept = [*imports, *(node for name, node in definitions.items() if name in wanted)]
    source = text.encode()
    starts = _line_starts(source)
    return "\n".join(_text(source, starts, node) for node in kept)


def _name(node: ast.stmt, needs_return: bool) -> str:
    """Returns the name under which a statement counts as a definition; "" if it does not."""
    if isinstance(node, ast.ClassDef):
        return "" if node.decorator_list else node.name
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        returns = not needs_return or any(isinstance(child, ast.Return) for child in ast.walk(node))
        return node.name if returns and not node.decorator_list else ""
    if isinstance(node, ast.Assign):
        # `a, b = c` and `a.b = c` have no plain name on the left, and go by the one on the right.
        names = [part.id for part in (*node.targets, node.value) if isinstance(part, ast.Name)]
        return names[0] if names else ""
    return node.target.id if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) else ""


def _closure(entry_point: str, definitions: dict[str, ast.stmt]) -> set[str]:
    found, waiting = {entry_point}, [entry_point]
    while waiting:
        node = definitions.get(waiting.pop())
        new = set(_identifiers(node)) - found if node is not None else set()
        found |= new
        waiting += new
    return found


def _identifiers(tree: ast.AST) -> Iterator[str]:
    """Yields every name in a tree, whatever it stands for: variables, attributes, arguments, keywords, imports."""
    for node in ast.walk(tree):
        for field in ("id", "attr", "arg", "name", "asname", "module", "rest"):
            value = getattr(node, field, None)
            if isinstance(value, str):
                yield from value.split(".")
        if isinstance(node, ast.Global | ast.Nonlocal):
            yield from node.names


def _line_starts(source: bytes) -> list[int]:
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    return starts


def _text(source: bytes, starts: list[int], node: ast.stmt) -> str:
    # Offsets in a line are in bytes.
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    start, end = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
    return source[start:end].decode()


def _without_outer_lines(text: str, entry_point: str) -> str:
    """Cuts lines at the end that use the entry point outside of any block, as BigCodeBench does."""
    lines, first = text.splitlines(), None
    for number in range(len(lines) - 1, -1, -1):
        if lines[number].startswith(" "):
            break
        if entry_point in lines[number]:
            first = number
    return text if first is None else "\n".join(lines[:first])
