from __future__ import annotations

import dataclasses
import gzip
import json
import os
import pathlib

import pytest

from iterpref_jax.codeflow import filters, focus, pairs, records
from iterpref_jax.errors import UserError

SETTINGS = filters.FilterSettings(
    max_focus_lines=20,
    drop_comment_focus=True,
    drop_same_ast=True,
    drop_duplicates=True,
    benchmarks=(),
    ngram=10,
)
CODE = "def f(a):\n    return a + 1\n"


def pair(chosen, rejected, *, prompt="Add one to a number.", form="code"):
    return records.Pair(pair_id="p", task="t", prompt=prompt, chosen=chosen, rejected=rejected, form=form, meta={})


def rule(one, *, settings=SETTINGS, mode="line", empty="drop", benchmarks=frozenset(), seen=None):
    how = focus.FocusSettings(mode=mode, empty=empty, seed=0)
    seen = set() if seen is None else seen
    return filters.focus_and_rule(one, how, settings, benchmarks=benchmarks, seen=seen)[1]


def changed(**changes):
    return dataclasses.replace(SETTINGS, **changes)


def test_a_good_pair_passes_every_rule():
    assert rule(pair(CODE, CODE.replace("+", "-"))) is None


def test_a_repair_that_only_inserts_is_dropped_kept_or_anchored():
    inserts = pair(CODE, "def f(a):\n")
    assert rule(inserts) == "empty_focus"
    assert rule(inserts, empty="keep") is None
    assert rule(inserts, empty="anchor") is None


@pytest.mark.parametrize("empty", ["drop", "keep", "anchor"])
def test_a_blank_chosen_side_is_dropped(empty):
    assert rule(pair(" \n", CODE), empty=empty) == "empty_chosen"


def test_with_anchors_a_pair_that_differs_in_line_ends_only_is_empty():
    assert rule(pair(CODE, CODE.replace("\n", "\r\n")), empty="anchor") == "empty_focus"


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("    # adds\n", "focus_only_comments"),
        ("\n    \t\n", "focus_only_comments"),
        ("    a = a  # adds\n", None),
        ("    '''Adds.'''\n", None),
        ("    # adds\n    a = 0\n", None),
    ],
)
def test_a_focus_of_comments_and_blank_lines_is_dropped(line, wanted):
    broken = CODE.replace("    return", f"{line}    return")
    assert rule(pair(CODE, broken)) == wanted


def test_comments_are_looked_for_in_fenced_code_only():
    def text(line, fence):
        return f"{fence}\n{line}\nx = 1\n{fence}\n"

    assert rule(pair(text("y = 1", "```"), text("# no", "```"), form="text")) == "focus_only_comments"
    # Without a fence a line with # is a heading.
    assert rule(pair(text("y = 1", ""), text("# no", ""), form="text")) is None


def lines(count, value):
    return "".join(f"x{n} = {value}\n" for n in range(count))


@pytest.mark.parametrize(("count", "limit", "wanted"), [(20, 20, None), (21, 20, "focus_too_long"), (21, 0, None)])
def test_a_focus_of_too_many_lines_is_dropped(count, limit, wanted):
    assert rule(pair(lines(count, 1), lines(count, 2)), settings=changed(max_focus_lines=limit)) == wanted


@pytest.mark.parametrize(
    ("one", "other", "wanted"),
    [
        ("x = 1", "x  =  (1)  # one", True),
        ("x = 1", "x = 2", False),
        ("x = 1", "x = 'it", False),
        ("x = 'it", "x = 'it", False),
        ("x = '\\d'", "x = '\\d' ", True),
        ("x\0", "x\0", False),
        ("'''a'''\n", "'''b'''\n", False),
        ("(" * 5000, "(" * 5000, False),
    ],
)
def test_same_trees_need_two_programs_that_parse(one, other, wanted):
    assert filters.same_ast(one, other) is wanted


def test_pairs_that_differ_in_layout_only_are_dropped():
    assert rule(pair(CODE, CODE.replace("a + 1", "(a+1)"))) == "same_ast"


def test_the_tree_of_a_text_is_that_of_its_fenced_code():
    def text(prose, code):
        return f"{prose}\n```python\n{code}```\n"

    assert rule(pair(text("Yes.", CODE), text("No!", CODE.replace("a + 1", "(a+1)")), form="text")) == "same_ast"
    assert rule(pair(text("Yes.", CODE), text("Yes.", CODE.replace("+", "-")), form="text")) is None


def test_the_second_of_two_equal_pairs_is_a_duplicate():
    seen = set()
    one = pair(CODE, CODE.replace("+", "-"))
    assert rule(one, seen=seen) is None
    assert rule(dataclasses.replace(one, pair_id="q", task="u", meta={"n": 1}), seen=seen) == "duplicate"
    assert rule(dataclasses.replace(one, prompt="Another."), seen=seen) is None


def test_a_pair_that_another_rule_drops_is_not_seen():
    seen = set()
    assert rule(pair(CODE, CODE + "# end\n"), seen=seen) == "focus_only_comments"
    assert not seen


def test_pair_keys_do_not_run_fields_together():
    assert filters.pair_key(pair("ab", "c")) != filters.pair_key(pair("a", "bc"))


SENTENCE = "Given the ordered list of passing trains, count how many wagons the longest train pulls today."


def benchmark_file(folder, *rows, name="bench.jsonl.gz"):
    path = folder / name
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return str(path)


def test_a_prompt_that_a_benchmark_holds_is_dropped(tmp_path):
    settings = changed(benchmarks=(benchmark_file(tmp_path, {"id": 1, "nested": {"prompts": [SENTENCE]}}),))
    known = filters.load_benchmarks(settings)
    bad = CODE.replace("+", "-")
    for prompt in (SENTENCE.upper(), ({"role": "user", "content": f"Please: {SENTENCE}"},)):
        assert rule(pair(CODE, bad, prompt=prompt), settings=settings, benchmarks=known) == "benchmark_overlap"
    assert rule(pair(CODE, bad), settings=settings, benchmarks=known) is None
    quoted = pair(f"# {SENTENCE}\n{CODE}", bad)
    assert rule(quoted, settings=settings, benchmarks=known) == "benchmark_overlap"


@pytest.mark.parametrize(("ngram", "wanted"), [(10, "benchmark_overlap"), (11, None)])
def test_an_overlap_is_a_run_of_ngram_words(tmp_path, ngram, wanted):
    settings = changed(benchmarks=(benchmark_file(tmp_path, {"prompt": SENTENCE}),), ngram=ngram)
    part = " ".join(SENTENCE.split()[:10])
    one = pair(CODE, CODE.replace("+", "-"), prompt=f"{part} differently")
    assert rule(one, settings=settings, benchmarks=filters.load_benchmarks(settings)) == wanted


@pytest.mark.parametrize(
    "idiom",
    ["for i in range(n):\n    for j in range(i + 1, n):\n        if i < j:\n", "[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]\n"],
)
def test_loop_headers_and_runs_of_numbers_are_no_overlap(tmp_path, idiom):
    settings = changed(benchmarks=(benchmark_file(tmp_path, {"prompt": SENTENCE, "canonical_solution": idiom}),))
    one = pair(idiom, idiom.replace("1", "0"))
    assert rule(one, settings=settings, benchmarks=filters.load_benchmarks(settings)) is None


@pytest.mark.parametrize(("count", "wanted"), [(3, "benchmark_overlap"), (4, None)])
def test_what_many_rows_of_a_benchmark_repeat_is_boilerplate(tmp_path, count, wanted):
    own = {"prompt": "Every benchmark row also says something that no other row says about wagons."}
    settings = changed(benchmarks=(benchmark_file(tmp_path, own, *[{"prompt": SENTENCE}] * count),))
    one = pair(CODE, CODE.replace("+", "-"), prompt=SENTENCE)
    assert rule(one, settings=settings, benchmarks=filters.load_benchmarks(settings)) == wanted


def test_a_benchmark_file_with_nothing_to_compare_is_refused(tmp_path):
    path = benchmark_file(tmp_path, {"prompt": "Too short."})
    with pytest.raises(UserError, match="nothing to compare in runs of 10 words"):
        filters.load_benchmarks(changed(benchmarks=(path,)))


def test_packed_test_cases_are_no_words(tmp_path):
    packed = "+".join(f"word{number}" for number in range(1000))
    (tmp_path / "b.jsonl").write_text(json.dumps({"prompt": " ".join("abcdefghijkl"), "cases": packed}) + "\n")
    with pytest.raises(UserError, match="nothing to compare"):
        filters.load_benchmarks(changed(benchmarks=(str(tmp_path / "b.jsonl"),)))


def test_infinities_of_published_benchmarks_are_read(tmp_path):
    path = benchmark_file(tmp_path, {"prompt": SENTENCE, "inputs": [float("-inf"), float("nan")]})
    assert filters.load_benchmarks(changed(benchmarks=(path,)))


@pytest.mark.parametrize(
    ("field", "one"),
    [
        ("drop_comment_focus", pair(CODE + "y = 2\n", CODE + "# y\n")),
        ("drop_same_ast", pair(CODE, CODE.replace("a + 1", "(a+1)"))),
    ],
)
def test_each_switch_turns_its_rule_off(field, one):
    assert rule(one) is not None
    assert rule(one, settings=changed(**{field: False})) is None


def test_duplicates_pass_where_they_are_allowed():
    seen = set()
    one = pair(CODE, CODE.replace("+", "-"))
    settings = changed(drop_duplicates=False)
    assert [rule(one, settings=settings, seen=seen) for _ in range(2)] == [None, None]


def test_rule_names_are_unique_and_explained():
    names = [rule.name for rule in filters.RULES]
    assert len(set(names)) == len(names)
    assert all(rule.meaning for rule in filters.RULES)
    paper = {"focus_only_comments", "focus_too_long", "too_many_tokens", "same_ast", "prompt_too_long"}
    ours = {"empty_focus", "chosen_fails", "rejected_passes", "duplicate", "benchmark_overlap"}
    assert paper | ours <= set(names)


def test_wrong_settings_are_refused():
    with pytest.raises(UserError, match="max_focus_lines"):
        changed(max_focus_lines=-1)
    with pytest.raises(UserError, match="ngram"):
        changed(ngram=0)


def real(*parts):
    path = pathlib.Path(os.environ.get("ITERPREF_DATA", "")).joinpath(*parts)
    if not path.exists():
        pytest.skip(f"ITERPREF_DATA does not name a folder with {'/'.join(parts)}")
    return str(path)


def overlapping_tasks(trajectories, benchmark):
    settings = changed(benchmarks=(benchmark,))
    known = filters.load_benchmarks(settings)
    how = pairs.PairSettings(choose="last", max_per_task=0, seed=0)
    made = list(pairs.make_pairs(records.read_trajectories(trajectories), how))
    hit = {p.task for p in made if rule(p, settings=settings, empty="keep", benchmarks=known) == "benchmark_overlap"}
    return hit, {p.task for p in made}


def test_repairs_of_mbpp_programs_overlap_mbpp():
    hit, tasks = overlapping_tasks(
        real("trajectories", "dev_llm_turns_mbpp.jsonl.gz"), real("benchmarks", "mbpp.jsonl.gz")
    )
    assert len(hit) > 0.9 * len(tasks)


def test_repairs_of_other_programs_do_not_overlap_humaneval():
    hit, _ = overlapping_tasks(real("trajectories", "dev_sample.jsonl.gz"), real("benchmarks", "HumanEval.jsonl.gz"))
    assert not hit


def test_prompts_of_humaneval_overlap_humaneval():
    path = real("benchmarks", "HumanEval.jsonl.gz")
    settings = changed(benchmarks=(path,))
    known = filters.load_benchmarks(settings)
    with gzip.open(path) as file:
        prompts = [json.loads(line)["prompt"] for line in file]
    rules = [rule(pair("x = 1\n", "x = 2\n", prompt=p), settings=settings, benchmarks=known) for p in prompts]
    assert rules.count("benchmark_overlap") >= 160


@pytest.mark.parametrize("mode", ["token", "prefix_suffix", "augment"])
@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        ("x = 1\ny = 2\nz = 3\n", "x = 1\n# todo\nz = 3\n", "focus_only_comments"),
        ("a\nb\n" + "same\n" * 30 + "c\n", "a\nx\n" + "same\n" * 30 + "y\n", None),
        ("return a + 1\n", "return a\n", None),
        ("a\nb\nc\nd\n", "b\nc\n", "empty_focus"),
    ],
    ids=["comments", "far apart", "tokens lacking", "two insertions"],
)
def test_rules_judge_lines_whatever_the_mode(chosen, rejected, expected, mode):
    assert rule(pair(chosen, rejected), mode=mode) == rule(pair(chosen, rejected)) == expected


def test_lines_of_a_string_are_no_comments():
    code = 'T = """\n# {}\n"""\nprint(T)\n'
    assert rule(pair(code.format("Title"), code.format("Titel"))) is None
    assert rule(pair("# a\nx = 1\ny = 2\n", "# b\nx = 1\n")) == "focus_only_comments"


def test_equal_texts_of_two_forms_are_no_duplicates():
    seen: set[bytes] = set()
    good, bad = CODE, CODE.replace("+", "-")
    assert [rule(pair(good, bad, form=form), seen=seen) for form in ("code", "text", "code")] == [
        None,
        None,
        "duplicate",
    ]
