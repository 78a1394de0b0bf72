"""The rules that drop a pair, each with a name that the reports count.

The text rules are here; the three rules on tokens need a tokenizer (`data.tokenize`), the two on verdicts belong to
`codeflow.pairs` and the judge. Source of the rules: the paper's section on rule filters, and `RULES` for ours.
"""

from __future__ import annotations

import ast
import collections
import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from iterpref_jax.codeflow import fences, records, rows, syntax
from iterpref_jax.codeflow import focus as focusing
from iterpref_jax.errors import UserError

_BOILERPLATE_ROWS = 3
_CONTENT_WORDS = 3
# A list of our own, not `keyword` and `builtins`: the same data must give the same pairs on every Python.
_PYTHON_WORD = re.compile(
    "and|assert|break|class|continue|def|del|elif|else|except|false|finally|for|from|global|import|lambda|none|not|pass"
    "|raise|return|self|true|try|while|with|yield|abs|all|any|dict|enumerate|float|int|isinstance|len|list|map|max|min"
    "|print|range|set|sorted|str|sum|tuple|zip|append|typing|optional"
)
# Quotes, comments, continued lines, line ends and characters of other kinds; numbers with two spellings (1e3, 0x10).
_AMBIGUOUS = re.compile(r"""['"#\\\r\f\0]|[^\x00-\x7f]|\d[._eEjJ]|\.\d|\b0[0-9xXoObB]""")
# Packed test cases, megabytes of base64, hold no words.
_WORDS_APART = re.compile(r"\s")
_TREE_TOKEN = re.compile(r"[A-Za-z_]\w*|\d+|[-+*/%@<>=!&|^~]")
# `elif` is `else` and `if`.
_RESPELT = ("elif", "else", "if")


class Rule(NamedTuple):
    """The name of a reason to drop a pair, and what it means."""

    name: str
    meaning: str


RULES = (
    Rule("chosen_fails", "the final version does not pass the tests"),
    Rule("rejected_passes", "an earlier version passes the tests, so it is no rejected side"),
    Rule("no_failing_version", "the history holds no failing version before the final one"),
    Rule("over_task_limit", "the task has more pairs than max_per_task"),
    Rule("empty_chosen", "the chosen side is blank: nothing is to be learnt from it"),
    Rule("empty_focus", "the repair only inserts lines: the rejected side has no focus"),
    Rule("focus_only_comments", "the rejected focus is comments and blank lines"),
    Rule("focus_too_long", "the rejected focus has more than max_focus_lines lines"),
    Rule("same_ast", "both sides parse to the same syntax tree"),
    Rule("benchmark_overlap", "the prompt or the code shares an n-gram of words with an evaluation benchmark"),
    Rule("duplicate", "the same prompt, chosen and rejected side came before"),
    Rule("not_reversible", "the tokenizer does not give a side back byte for byte"),
    Rule("prompt_too_long", "the prompt has more tokens than max_prompt_tokens"),
    Rule("too_many_tokens", "a side has more tokens than allowed"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilterSettings:
    """Which text rules apply.

    `max_focus_lines`: lines of the rejected focus (the paper's 20); 0 = any. `benchmarks`: files (JSON Lines, JSON or
    Parquet) whose prompts and solutions no pair may share `ngram` consecutive words with.
    """

    max_focus_lines: int
    drop_comment_focus: bool
    drop_same_ast: bool
    drop_duplicates: bool
    benchmarks: tuple[str, ...]
    ngram: int

    def __post_init__(self) -> None:
        if self.max_focus_lines < 0:
            raise UserError(f"max_focus_lines must be 0 (any) or more, not {self.max_focus_lines}")
        if self.ngram < 1:
            raise UserError(f"ngram must be 1 word or more, not {self.ngram}")


def focus_and_rule(
    pair: records.Pair,
    focus_settings: focusing.FocusSettings,
    settings: FilterSettings,
    *,
    benchmarks: frozenset[bytes],
    seen: set[bytes],
) -> tuple[focusing.Focus, str | None]:
    """Returns the focus of a pair, and the name of the first text rule that drops the pair, or None.

    Rules judge the lines D- whatever the focus mode makes of them, so that modes are compared on the same pairs.
    `benchmarks` comes from `load_benchmarks(settings)`; `seen` is one set for the whole run, to which the pair is added
    if no rule drops it.
    """
    focus = lines = _focus(pair, focus_settings)
    if focus_settings.mode != "line":
        lines = _focus(pair, dataclasses.replace(focus_settings, mode="line"))
    if not pair.chosen.strip():
        return focus, "empty_chosen"
    rule = _focus_rule(pair, lines, settings, focus_settings.empty)
    if rule is None and focus.is_empty and focus_settings.empty != "keep":
        rule = "empty_focus"
    return focus, rule or _content_rule(pair, settings, benchmarks, seen)


def load_benchmarks(settings: FilterSettings) -> frozenset[bytes]:
    """Returns the fingerprints of the telling n-grams of the benchmark files: runs of `ngram` words in any string.

    An n-gram tells nothing, and is left out, if it is the idiom of every program (fewer than three different words of
    three letters that are not Python's own: loop headers, runs of numbers) or boilerplate of the benchmark (in more
    than three of its rows).

    Raises:
      UserError: a file is absent or unreadable, or holds no telling n-gram.
    """
    known: set[bytes] = set()
    for path in settings.benchmarks:
        rows_with = collections.Counter(
            ngram
            for _, row in rows.read_rows(path, allow_nan=True)
            for ngram in {ngram for text in _strings(row) for ngram in _ngrams(text, settings.ngram)}
        )
        telling = {ngram for ngram, count in rows_with.items() if count <= _BOILERPLATE_ROWS}
        if not telling:
            raise UserError(
                f"{path}: nothing to compare in runs of {settings.ngram} words; lower ngram or check the file"
            )
        known |= telling
    return frozenset(known)


def only_comments(lines: Iterable[str]) -> bool:
    """Whether every line is blank or begins with `#`; a docstring is not a comment, it is in the syntax tree.

    >>> only_comments(["  # add\\n", "\\n"]), only_comments(["x = 1  # add\\n"])
    (True, False)
    """
    return all(line.lstrip()[:1] in ("", "#") for line in lines)


def same_ast(one: str, other: str) -> bool:
    """Whether both programs parse, and to the same tree: they differ in layout and comments at most."""
    if _other_tokens(one, other):
        return False
    trees = _tree(one), _tree(other)
    return None not in trees and _equal_nodes(*trees)


def pair_key(pair: records.Pair) -> bytes:
    """Returns a fingerprint that is equal for pairs with equal prompt, form, chosen and rejected side."""
    prompt = pair.prompt if isinstance(pair.prompt, str) else json.dumps(pair.prompt, sort_keys=True)
    kind = type(pair.prompt).__name__
    texts = kind, prompt, pair.form, pair.chosen, pair.rejected
    parts = [text.encode("utf-8", "surrogatepass") for text in texts]
    lengths = " ".join(str(len(part)) for part in parts)
    return hashlib.sha256(b"".join([lengths.encode(), *parts])).digest()


def _focus_rule(
    pair: records.Pair, focus: focusing.Focus, settings: FilterSettings, empty: focusing.Empty
) -> str | None:
    if focus.is_empty:
        # Under "anchor" these are the pairs that differ in line ends or outside fenced code only: nothing was inserted.
        return None if empty == "keep" else "empty_focus"
    lines = focusing.focus_lines(pair.rejected, focus.rejected)
    # Anchors touch no line.
    if settings.drop_comment_focus and lines and only_comments(lines) and _are_comments(pair, focus):
        return "focus_only_comments"
    return "focus_too_long" if 0 < settings.max_focus_lines < len(lines) else None


def _focus(pair: records.Pair, settings: focusing.FocusSettings) -> focusing.Focus:
    return focusing.find_focus(
        pair.chosen,
        pair.rejected,
        settings,
        pair.pair_id,
        fenced=pair.form == "text",
        prompt=_text_before(pair),
    )


def _are_comments(pair: records.Pair, focus: focusing.Focus) -> bool:
    """Whether lines that look like comments are comments of a program: they may be headings, or lie in a string."""
    if pair.form == "text" and not fences.blocks(pair.rejected, fences.open_block(_text_before(pair))):
        return False
    ends = [0, *(end for _, end in focus.rejected)]
    starts = [*(start for start, _ in focus.rejected), len(pair.rejected)]
    without = "".join(pair.rejected[end:start] for end, start in zip(ends, starts, strict=True))
    code = _code(pair, pair.rejected)
    return not syntax.parses(code) or same_ast(code, _code(pair, without))


def _content_rule(
    pair: records.Pair, settings: FilterSettings, benchmarks: frozenset[bytes], seen: set[bytes]
) -> str | None:
    if settings.drop_same_ast and same_ast(_code(pair, pair.chosen), _code(pair, pair.rejected)):
        return "same_ast"
    if benchmarks and not benchmarks.isdisjoint(_pair_ngrams(pair, settings.ngram)):
        return "benchmark_overlap"
    key = pair_key(pair)
    if settings.drop_duplicates and key in seen:
        return "duplicate"
    seen.add(key)
    return None


def _code(pair: records.Pair, completion: str) -> str:
    if pair.form == "code":
        return completion
    return "".join(completion[start:end] for start, end in fences.code_spans(completion, _text_before(pair)))


def _text_before(pair: records.Pair) -> str:
    """Returns the text that a completion goes on; a message's answer goes on nothing."""
    return pair.prompt if isinstance(pair.prompt, str) else ""


def _other_tokens(one: str, other: str) -> bool:
    """Whether names, operators and numbers alone show that the trees differ; False says nothing.

    Between the programs' common first and last lines, lines with quotes, comments or anything that has two spellings
    must be the same: then all other lines there begin alike, in a string or outside of one, and each of their tokens
    is in the tree as often as it stands there. Parsing takes ten times as long.
    """
    lines, others = one.split("\n"), other.split("\n")
    span, other_span = focusing.between_ends(lines, others)
    ambiguous, tokens = _ambiguous_and_tokens(lines[slice(*span)])
    other_ambiguous, other_tokens = _ambiguous_and_tokens(others[slice(*other_span)])
    return ambiguous == other_ambiguous and tokens != other_tokens


def _ambiguous_and_tokens(lines: list[str]) -> tuple[list[str], list[str]]:
    ambiguous, tokens = [], []
    for line in lines:
        if _AMBIGUOUS.search(line):
            ambiguous.append(line)
        else:
            tokens += _TREE_TOKEN.findall(line)
    return ambiguous, sorted(token for token in tokens if token not in _RESPELT)


# Pairs of one task follow each other and share their chosen program.
_tree = functools.lru_cache(maxsize=2)(syntax.tree_of)


def _equal_nodes(one: Any, other: Any) -> bool:
    """Compares side by side and stops at the first difference: real pairs differ, and `ast.dump` of both is slow."""
    waiting = [(one, other)]
    while waiting:
        a, b = waiting.pop()
        if type(a) is not type(b):
            return False
        if isinstance(a, ast.AST):
            waiting.extend((getattr(a, field, None), getattr(b, field, None)) for field in a._fields)
        elif isinstance(a, list):
            if len(a) != len(b):
                return False
            waiting.extend(zip(a, b, strict=True))
        elif a != b:
            return False
    return True


def _pair_ngrams(pair: records.Pair, size: int) -> Iterator[bytes]:
    prompt = [pair.prompt] if isinstance(pair.prompt, str) else [message["content"] for message in pair.prompt]
    for text in (*prompt, pair.chosen, pair.rejected):
        yield from _ngrams(text, size)


def _ngrams(text: str, size: int) -> Iterator[bytes]:
    words = re.findall(r"\w+", text.lower())
    for start in range(len(words) - size + 1):
        ngram = words[start : start + size]
        if len({word for word in ngram if _is_content(word)}) >= min(size, _CONTENT_WORDS):
            # 8 bytes: with a million n-grams in benchmarks, one chance hit in 10^13 n-grams of pairs.
            yield hashlib.blake2b(" ".join(ngram).encode(), digest_size=8).digest()


@functools.lru_cache(maxsize=1 << 16)
def _is_content(word: str) -> bool:
    return len(re.sub(r"[\d_]", "", word)) >= 3 and not _PYTHON_WORD.fullmatch(word)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if _WORDS_APART.search(value):
            yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)
