from __future__ import annotations

import itertools
import os
import pathlib

import hypothesis
import hypothesis.strategies as st
import pytest

from iterpref_jax.codeflow import focus, pairs, records, syntax
from iterpref_jax.errors import UserError

line_texts = st.lists(st.sampled_from(["a", "b", "", "  c"]), max_size=8)
programs = st.builds(lambda lines, ends: ends.join(lines), line_texts, st.sampled_from(["\n", "\r\n", "\r"]))
any_texts = st.text(alphabet="ab =(\n\r`~x\u2028\x0c1é", max_size=30)
modes = st.sampled_from(["line", "token", "prefix_suffix", "augment"])
empties = st.sampled_from(["drop", "keep", "anchor"])


def settings(mode="line", empty="drop", seed=0):
    return focus.FocusSettings(mode=mode, empty=empty, seed=seed)


def find(chosen, rejected, mode="line", empty="drop", *, seed=0, key="k", fenced=False):
    return focus.find_focus(chosen, rejected, settings(mode, empty, seed), key, fenced=fenced)


def texts(text, spans):
    return [text[start:end] for start, end in spans]


def without(text, spans):
    for start, end in reversed(spans):
        text = text[:start] + text[end:]
    return text


GOOD = "def f(a, b):\n    # add\n    c = a + b\n    return c\n"
BAD = "def f(a, b):\n    # add\n    c = a - b\n    print(c)\n    return c\n"


def test_the_lines_outside_the_common_subsequence_are_the_focus():
    got = find(GOOD, BAD)
    assert texts(BAD, got.rejected) == ["    c = a - b\n    print(c)\n"]
    assert texts(GOOD, got.chosen) == ["    c = a + b\n"]


@hypothesis.given(programs, programs)
def test_without_the_focus_both_sides_have_the_same_lines(chosen, rejected):
    got = find(chosen, rejected)
    left, right = (without(t, s).splitlines() for t, s in ((chosen, got.chosen), (rejected, got.rejected)))
    # A focus at the end of a text without a last line end leaves the line end before it: compare lines, not text.
    assert left == right


@hypothesis.given(programs, modes, empties)
def test_equal_texts_have_no_focus(program, mode, empty):
    assert find(program, program, mode, empty) == focus.Focus(chosen=(), rejected=())


@hypothesis.given(line_texts, modes, empties)
def test_line_ends_alone_are_never_focus(lines, mode, empty):
    lines = [*lines, "the end"]
    got = find("".join(f"{line}\r\n" for line in lines), "\n".join(lines), mode, empty)
    assert got == focus.Focus(chosen=(), rejected=())


@hypothesis.given(any_texts, any_texts, modes, empties, st.booleans())
def test_spans_rise_and_keep_apart_and_lie_in_their_text(chosen, rejected, mode, empty, fenced):
    got = find(chosen, rejected, mode, empty, fenced=fenced)
    for text, spans in ((chosen, got.chosen), (rejected, got.rejected)):
        assert all(0 <= start <= end <= len(text) for start, end in spans)
        assert all(before[1] < after[0] for before, after in itertools.pairwise(spans))
    lengths = {start < end for start, end in got.rejected}
    assert len(lengths) <= 1, "anchors stand only where there is no focus at all"
    assert all(start < end for start, end in got.chosen)


@pytest.mark.parametrize("inside", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"])
def test_a_line_ends_only_where_python_ends_it(inside):
    text = f"a{inside}b\nc"
    assert texts(text, syntax.line_spans(text)) == [f"a{inside}b\n", "c"]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", []),
        ("\n", ["\n"]),
        ("a\n\nb\n", ["a\n", "\n", "b\n"]),
        ("a\n\nb", ["a\n", "\n", "b"]),
        ("a\r\n\rb\n\n", ["a\r\n", "\r", "b\n", "\n"]),
        ("a\rb", ["a\r", "b"]),
        ("a", ["a"]),
    ],
)
def test_line_spans_hold_their_terminators(text, lines):
    assert texts(text, syntax.line_spans(text)) == lines


INSERTED = "def f(a):\n    if not a:\n        return 0\n    return 1 / a\n"
SHORT = "def f(a):\n    return 1 / a\n"


@pytest.mark.parametrize("mode", ["line", "token", "prefix_suffix", "augment"])
@pytest.mark.parametrize("empty", ["drop", "keep"])
def test_a_repair_that_only_inserts_leaves_the_rejected_side_empty(mode, empty):
    got = find(INSERTED, SHORT, mode, empty)
    assert got.is_empty
    assert "    if not a:\n        return 0\n" in texts(INSERTED, got.chosen)[0]


@pytest.mark.parametrize("mode", ["line", "token", "prefix_suffix", "augment"])
def test_an_anchor_stands_where_the_inserted_lines_belong(mode):
    got = find(INSERTED, SHORT, mode, "anchor")
    place = SHORT.index("return")
    assert got.rejected == ((place, place),)


@pytest.mark.parametrize("short", ["x = 1\n", "x = 1", ""])
def test_an_insertion_at_the_end_is_anchored_at_the_end(short):
    assert find("x = 1\ny = 2\n", short, empty="anchor").rejected == ((len(short), len(short)),)


def test_every_insertion_has_its_anchor():
    assert find("a\nX\nb\nY\nc\nZ\n", "a\nb\nc\n", empty="anchor").rejected == ((2, 2), (4, 4), (6, 6))


def test_a_rejected_focus_leaves_no_room_for_anchors():
    got = find("a\nX\nb\nc\n", "a\nb\nc\nd\n", empty="anchor")
    assert texts("a\nb\nc\nd\n", got.rejected) == ["d\n"]


def test_a_repair_that_only_deletes_has_focus_on_the_rejected_side_alone():
    got = find(SHORT, INSERTED)
    assert texts(INSERTED, got.rejected) == ["    if not a:\n        return 0\n"]
    assert got.chosen == ()


def test_token_mode_takes_only_the_differing_tokens_of_replaced_lines():
    got = find("x = foo(a, b) + 10\n", "x = bar(a, b) - 10\n", "token")
    assert texts("x = bar(a, b) - 10\n", got.rejected) == ["bar", "-"]
    assert texts("x = foo(a, b) + 10\n", got.chosen) == ["foo", "+"]


@pytest.mark.parametrize(
    ("good", "bad", "wanted"),
    [
        ("a >= b\n", "a > b\n", [">"]),
        ("a // b\n", "a / b\n", ["/"]),
        ("a ** b\n", "a * b\n", ["*"]),
        ("s = 'red fox'\n", "s = 'red dog'\n", ["dog"]),
        ("    x\n", "  x\n", ["  "]),
        ("total_sum\n", "total\n", ["total"]),
    ],
)
def test_token_mode_compares_whole_operators_words_and_indents(good, bad, wanted):
    assert texts(bad, find(good, bad, "token").rejected) == wanted


def test_token_mode_takes_no_line_ends():
    bad = "x = 1\r\ny = 1\rz = 1\n"
    assert texts(bad, find("x = 2\ny = 2\nz = 2\n", bad, "token").rejected) == ["1", "1", "1"]


def test_token_mode_keeps_deleted_lines_whole():
    assert texts("a\nx = 1\nb\n", find("a\nb\n", "a\nx = 1\nb\n", "token").rejected) == ["x = 1\n"]


def test_token_mode_anchors_an_argument_that_is_missing():
    got = find("x = f(a, b)\n", "x = f(a)\n", "token", "anchor")
    place = "x = f(a)\n".index(")")
    assert got.rejected == ((place, place),)


@hypothesis.given(programs, programs)
def test_token_focus_lies_inside_line_focus(chosen, rejected):
    lines, tokens = (find(chosen, rejected, mode) for mode in ("line", "token"))
    for outer, inner in ((lines.chosen, tokens.chosen), (lines.rejected, tokens.rejected)):
        assert all(any(a <= start and end <= b for a, b in outer) for start, end in inner)


def test_prefix_suffix_mode_takes_everything_between_the_common_ends():
    good, bad = "a\nX\nb\nY\nc\n", "a\nU\nb\nV\nc\n"
    got = find(good, bad, "prefix_suffix")
    assert texts(bad, got.rejected) == ["U\nb\nV\n"]
    assert texts(good, got.chosen) == ["X\nb\nY\n"]


def test_prefix_and_suffix_never_share_a_line():
    assert texts("a\na\na\n", find("a\na\n", "a\na\na\n", "prefix_suffix").rejected) == ["a\n"]


@hypothesis.given(programs, programs)
def test_prefix_suffix_focus_covers_line_focus(chosen, rejected):
    # Not span by span: a common end that one rule matches to a repeated line, the other may match to its twin.
    covered, lines = (find(chosen, rejected, mode) for mode in ("prefix_suffix", "line"))
    for text, outer, inner in ((chosen, covered.chosen, lines.chosen), (rejected, covered.rejected, lines.rejected)):
        assert len(focus.focus_lines(text, outer)) >= len(focus.focus_lines(text, inner))


LONG = "".join(f"line {n}\n" for n in range(20))


@pytest.mark.parametrize("key", [f"pair {n}" for n in range(8)])
def test_augment_adds_the_same_one_or_two_lines_on_both_sides_of_the_focus(key):
    got = find(LONG, LONG.replace("line 9\n", "wrong\n"), "augment", key=key)
    one = "line 8\nwrong\nline 10\n"
    (text,) = texts(LONG.replace("line 9\n", "wrong\n"), got.rejected)
    assert text in (one, f"line 7\n{one}line 11\n")
    assert texts(LONG, got.chosen) == [text.replace("wrong", "line 9")]


def test_augment_draws_both_counts_and_depends_on_the_seed():
    def counts(seed):
        bad = LONG.replace("line 9\n", "wrong\n")
        found = (find(LONG, bad, "augment", seed=seed, key=str(n)) for n in range(20))
        return [len(focus.focus_lines(bad, got.rejected)) for got in found]

    assert set(counts(0)) == {3, 5}
    assert counts(0) == counts(0) != counts(1)


def test_augment_stops_at_the_ends_and_merges_neighbours():
    bad = "wrong\nb\nc\nbad\n"
    got = find("a\nb\nc\nd\n", bad, "augment")
    assert got.rejected == ((0, len(bad)),)


FENCED_GOOD = "Here it is:\n```python\nx = 1\ny = 2\n```\nDone.\n"
FENCED_BAD = "Here you go:\n```python\nx = 3\ny = 2\n```\nEnjoy.\n"


def test_prose_outside_fenced_code_is_no_focus():
    got = find(FENCED_GOOD, FENCED_BAD, fenced=True)
    assert texts(FENCED_BAD, got.rejected) == ["x = 3\n"]
    assert texts(FENCED_GOOD, got.chosen) == ["x = 1\n"]


def test_prose_is_focus_where_fences_are_not_asked_for_or_not_there():
    assert texts(FENCED_BAD, find(FENCED_GOOD, FENCED_BAD).rejected)[0] == "Here you go:\n"
    assert texts("no\n", find("yes\n", "no\n", fenced=True).rejected) == ["no\n"]


def test_fence_lines_are_never_focus():
    bad = "~~~\nx = 1\n~~~\n"
    got = find("```python\nx = 1\n```\n", bad, fenced=True)
    assert got == focus.Focus(chosen=(), rejected=())


def test_code_missing_at_the_end_of_a_block_is_anchored_at_the_closing_fence():
    bad = "```\nx = 1\n```\nDone.\n"
    place = bad.index("```\nDone")
    got = find("```\nx = 1\ny = 2\n```\nDone.\n", bad, empty="anchor", fenced=True)
    assert got.rejected == ((place, place),)


def test_an_insertion_of_prose_has_no_anchor():
    assert find("Hello.\n```\nx\n```\n", "```\nx\n```\n", empty="anchor", fenced=True).is_empty


def test_a_block_that_is_missing_has_no_anchor_outside_fenced_code():
    bad = "```\nx = 1\n```\n"
    assert find(f"{bad}```\ny = 2\n```\n", bad, empty="anchor", fenced=True).is_empty


def test_focus_lines_are_the_whole_lines_that_a_span_touches():
    text = "ab\ncd\nef\n"
    assert focus.focus_lines(text, [(1, 2)]) == ["ab\n"]
    assert focus.focus_lines(text, [(2, 4)]) == ["ab\n", "cd\n"]
    assert focus.focus_lines(text, [(3, 3)]) == []
    assert focus.focus_lines(text, [(0, 3), (6, 9)]) == ["ab\n", "ef\n"]


@pytest.mark.parametrize(("field", "value"), [("mode", "lines"), ("empty", "dropp")])
def test_an_unknown_setting_is_refused_with_the_likely_one(field, value):
    with pytest.raises(UserError, match=f"focus {field} must be one of .*; did you mean '{value[:4]}'"):
        settings(**{field: value})


@pytest.mark.parametrize("name", ["dev_sample", "dev_llm_turns_mbpp"])
def test_without_the_focus_real_pairs_have_the_same_lines(name):
    path = pathlib.Path(os.environ.get("ITERPREF_DATA", "")) / "trajectories" / f"{name}.jsonl.gz"
    if not path.exists():
        pytest.skip("ITERPREF_DATA does not name a folder with trajectories/")
    chosen = pairs.PairSettings(choose="random", max_per_task=0, seed=0)
    for pair in pairs.make_pairs(records.read_trajectories(path), chosen):
        got = find(pair.chosen, pair.rejected, key=pair.pair_id)
        left, right = without(pair.chosen, got.chosen), without(pair.rejected, got.rejected)
        lines = [[text[a:b].rstrip("\r\n") for a, b in syntax.line_spans(text)] for text in (left, right)]
        assert lines[0] == lines[1], pair.pair_id


def test_code_that_goes_on_a_block_of_the_prompt_ends_at_its_fence():
    prompt = "Add them.\n```python\n"
    good, bad = (
        "def f(a, b):\n    return a + b\n```\nIt adds.\n",
        "def f(a, b):\n    return a - b\n```\nIt subtracts.\n",
    )
    got = focus.find_focus(good, bad, settings(), "k", fenced=True, prompt=prompt)
    assert (texts(good, got.chosen), texts(bad, got.rejected)) == (["    return a + b\n"], ["    return a - b\n"])


@pytest.mark.parametrize("fence", ["{}", "So:\n```python\n{}```\n"])
def test_a_fence_in_a_docstring_hides_no_fault(fence):
    program = 'def f():\n    """Doubles.\n\n```\nf()\n```\n    """\n    return 2\n'
    good, bad = (fence.format(text) for text in (program, program.replace("return 2", "return 3")))
    assert texts(bad, find(good, bad, fenced=True).rejected) == ["    return 3\n"]


def test_prefix_and_suffix_are_those_of_the_code():
    good, bad = (f"{a}:\n```\nx = 1\ny = {b}\nz = 3\n```\n{c}.\n" for a, b, c in ("A2B", "C5D"))
    assert texts(bad, find(good, bad, "prefix_suffix", fenced=True).rejected) == ["y = 5\n"]


@pytest.mark.parametrize(
    ("chosen", "rejected", "goes_on"),
    [
        ("return a + 1\n", "return a\n", "\n"),
        ("f(a, b)\nx\n", "f(a)\nx\n", ")\nx\n"),
        ("return a + 1", "return a", ""),
    ],
)
@pytest.mark.parametrize("empty", ["drop", "anchor"])
def test_tokens_that_a_replaced_line_lacks_are_an_anchor(chosen, rejected, goes_on, empty):
    place = len(rejected) - len(goes_on)
    assert find(chosen, rejected, "token", empty).rejected == ((place, place),)


def test_an_anchor_of_tokens_stands_beside_other_focus():
    got = find("f(a, b)\nsame\ny = 1\n", "f(a)\nsame\ny = 2\n", "token")
    assert got.rejected == ((3, 3), (14, 15))


def test_lines_that_are_only_inserted_are_no_focus_of_tokens():
    assert find("a\nb\n", "a\n", "token").is_empty


def test_every_anchor_stands_where_the_sides_part():
    bad = "def f(a):\n    b = a\n    c = b\n    return c\n"
    good = "def f(a):\n    a += 1\n    b = a\n    c = b\n    if c:\n        c = 2\n    return c\n"
    got = find(good, bad, empty="anchor")
    assert [bad[place:].split("\n")[0] for place, _ in got.rejected] == ["b = a", "return c"]
