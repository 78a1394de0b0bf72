"""Benchmarks' files: what is read of real and of made ones, and what is refused."""

import base64
import gzip
import json
import os
import pickle
import zlib
from pathlib import Path

import pytest

from iterpref_jax.errors import UserError
from iterpref_jax.evaluate import benchmarks, prompts
from iterpref_jax.evaluate.benchmarks.file import Choice
from iterpref_jax.evaluate.benchmarks.mbpp import called_name
from iterpref_jax.evaluate.benchmarks.mbpp_inputs import restored
from iterpref_jax.evaluate.tasks import CallTests, MethodTests, StdinTests
from tests.evaluate import made

REAL = {
    "HumanEval.jsonl.gz": ("humaneval", 164, "HumanEval"),
    "HumanEvalPlus.jsonl.gz": ("humaneval+", 164, "HumanEval+ v0.1.10"),
    "HumanEvalPlus-OriginFmt.jsonl.gz": ("humaneval+", 164, "HumanEval+ v0.1.10 (OriginFmt)"),
    "mbpp.jsonl.gz": ("mbpp-all", 974, "MBPP"),
    "MbppPlus.jsonl.gz": ("mbpp+", 378, "MBPP+ v0.2.0"),
    "MbppPlus-OriginFmt.jsonl.gz": ("mbpp+", 378, "MBPP+ v0.2.0 (OriginFmt)"),
    "bigcodebench_hard.json.gz": ("bigcodebench-hard", 148, "BigCodeBench-Hard v0.1.4"),
    "LeetCodeDataset-v0.3.1-test.jsonl.gz": ("leetcode", 228, "LeetCodeDataset v0.3.1 test"),
}


@pytest.mark.parametrize("file", REAL)
def test_a_published_file_is_known_by_its_content(file):
    name, count, version = REAL[file]
    found = benchmarks.load(name, made.real(file), made.CHOICE)
    assert (len(found.tasks), found.version) == (count, version)
    assert all(task.canonical and task.suites for task in found.tasks)


def test_unpacking_a_file_does_not_make_it_another_one(tmp_path):
    path = tmp_path / "HumanEval.jsonl"
    path.write_bytes(gzip.decompress(Path(made.real("HumanEval.jsonl.gz")).read_bytes()))
    assert benchmarks.load("humaneval", path, made.CHOICE).version == "HumanEval"


def test_the_test_split_of_mbpp_is_tasks_11_to_510():
    found = benchmarks.load("mbpp", made.real("mbpp.jsonl.gz"), made.CHOICE)
    assert [found.tasks[0].task_id, found.tasks[-1].task_id, len(found.tasks)] == ["Mbpp/11", "Mbpp/510", 500]


def test_the_file_of_another_benchmark_is_refused_with_its_name():
    with pytest.raises(UserError, match=r"is MBPP: use --benchmark=mbpp"):
        benchmarks.load("humaneval", made.real("mbpp.jsonl.gz"), made.CHOICE)


def test_both_forms_of_mbpp_plus_show_the_same_prompts():
    one = benchmarks.load("mbpp+", made.real("MbppPlus.jsonl.gz"), made.CHOICE)
    other = benchmarks.load("mbpp+", made.real("MbppPlus-OriginFmt.jsonl.gz"), made.CHOICE)
    assert [task.entry_point for task in one.tasks] == [task.entry_point for task in other.tasks]
    equal = sum(
        a.prompts.code.split("assert")[0] == b.prompts.code.split("assert")[0]
        for a, b in zip(one.tasks, other.tasks, strict=True)
    )
    # Of the others the OriginFmt has an earlier wording, with addresses.
    assert equal == 360


def test_inputs_of_mbpp_plus_get_the_types_that_json_lost():
    assert restored(2, [[[1, 2], [3]]]) == [[(1, 2), (3,)]]
    assert restored(252, [["(1+2j)"]]) == [[1 + 2j]]
    assert restored(115, [[[[1], []]]]) == [[[{1}, {}]]]
    assert restored(3, [[[1, 2]]]) == [[[1, 2]]]


def test_restored_inputs_are_those_of_evalplus(monkeypatch):
    pytest.importorskip("evalplus", reason="EvalPlus is the oracle: pip install --no-deps evalplus")
    for module in ("appdirs", "wget", "tempdir", "tqdm"):
        pytest.importorskip(module, reason="EvalPlus' data module needs it")
    import sys
    import types

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=None))
    from evalplus.data.mbpp import mbpp_deserialize_inputs

    with gzip.open(made.real("MbppPlus.jsonl.gz"), "rt") as file:
        rows = [json.loads(line) for line in file if line.strip()]
    for row in rows:
        ours = restored(int(row["task_id"][5:]), row["plus_input"])
        # By text: NaN is unlike itself, and a tuple of arguments is as good as a list of them.
        theirs = [list(args) for args in mbpp_deserialize_inputs(row["task_id"], row["plus_input"])]
        assert repr([list(args) for args in ours]) == repr(theirs), row["task_id"]


@pytest.mark.parametrize(
    ("assertion", "name"),
    [
        ("assert set(similar((3, 4), (5, 4))) == set((4,))", "similar"),
        ("assert round(area(3), 2) == 7.07", "area"),
        ("assert sum(10, 15) == 6", "sum"),
        ("assert 1 == 1", ""),
    ],
)
def test_the_function_of_an_assertion_is_the_first_that_the_program_defines(assertion, name):
    assert called_name(assertion, "\n".join(f"def {each}(): ..." for each in ("area", "similar", "sum"))) == name


def problem(**changes):
    known = {
        "question_id": "q1",
        "question_title": "Echo",
        "question_content": "Print the number twice.",
        "contest_date": "2024-08-10T00:00:00",
        "difficulty": "easy",
        "starter_code": "",
        "public_test_cases": json.dumps([{"input": "3\n", "output": "3\n3\n", "testtype": "stdin"}]),
        "private_test_cases": packed([{"input": "4\n", "output": "4\n4\n", "testtype": "stdin"}]),
        "metadata": "{}",
    }
    return known | changes


def packed(cases):
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(cases)))).decode()


def contest(tmp_path, *rows, **choice):
    path = made.write_lines(tmp_path / "lcb.jsonl", list(rows))
    known = dict(split="complete", since="", until="", limit=0, shots="")
    return benchmarks.load("livecodebench", path, Choice(**known | choice))


def test_public_and_packed_private_cases_are_read(tmp_path):
    (task,) = contest(tmp_path, problem()).tasks
    tests = task.suites[0].tests
    assert isinstance(tests, StdinTests)
    assert tests.cases == (("3\n", "3\n3\n"), ("4\n", "4\n4\n"))
    assert task.tags == ("easy",)


def test_a_problem_with_a_method_is_judged_by_calls(tmp_path):
    row = problem(
        starter_code="class Solution:\n    def twice(self, n: int) -> int:\n        ",
        metadata='{"func_name": "twice"}',
        public_test_cases=json.dumps([{"input": "3", "output": "6", "testtype": "functional"}]),
        private_test_cases="[]",
    )
    (task,) = contest(tmp_path, row).tasks
    assert isinstance(task.suites[0].tests, MethodTests)
    assert "### Format: You will use the following starter code" in task.prompts.messages[1][1]


def test_a_window_of_dates_has_both_its_ends(tmp_path):
    rows = [problem(question_id=str(day), contest_date=f"2024-08-{day:02}T00:00:00") for day in (1, 5, 9, 12)]
    found = contest(tmp_path, *rows, since="2024-08-05", until="2024-08-09")
    assert [task.task_id for task in found.tasks] == ["5", "9"]


def test_a_pickle_that_names_anything_is_refused_and_not_run(tmp_path):
    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harmed"),)

    harm = base64.b64encode(zlib.compress(pickle.dumps(Harm()))).decode()
    with pytest.raises(UserError, match=r"line 1: the test cases cannot be read \(it names \w+\.mkdir\)"):
        contest(tmp_path, problem(private_test_cases=harm))
    assert not (tmp_path / "harmed").exists()


def test_a_base_model_is_shown_the_given_example_first(tmp_path):
    for kind in ("func", "stdin"):
        example = [{"question": f"Ask {kind}.", "sample_code": "def f(): ...", "answer": f"answer_{kind}()"}]
        (tmp_path / f"{kind}.json").write_text(json.dumps(example))
    found = contest(tmp_path, problem(), shots=str(tmp_path))
    shown = prompts.shown("base", found, found.tasks[0])
    expected = (
        "### Question\nAsk stdin.\n\n### Answer\n\nanswer_stdin()\n\n"
        "### Question\nPrint the number twice.\n\n### Answer\n\n"
    )
    assert (shown.text, shown.stops) == (expected, ("###",))


def test_a_base_model_without_an_example_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"has no prompt in the style 'base'; it has chat, raw; .* evaluate\.shots"):
        prompts.check_style("base", contest(tmp_path, problem()))


@pytest.mark.parametrize(
    ("name", "choice", "message"),
    [
        ("humanevl", {}, "did you mean 'humaneval'"),
        ("mbpp", {}, "needs its file: give --data=FILE"),
        ("humaneval", {"since": "2024-01-01"}, "tasks of humaneval have no date"),
        ("livecodebench", {"since": "last year"}, "wanted a date such as"),
        ("livecodebench", {"until": "20240801"}, "evaluate.until: wanted a date such as 2024-08-01, got '20240801'"),
        ("livecodebench", {"since": "2024-W31-4"}, "evaluate.since: wanted a date such as"),
        ("bigcodebench", {"split": "instuct"}, "did you mean 'instruct'"),
    ],
)
def test_a_choice_that_cannot_be_met_is_refused(name, choice, message, tmp_path):
    known = dict(split="complete", since="", until="", limit=0, shots="")
    data = "" if name in ("humanevl", "mbpp", "humaneval") else made.write_lines(tmp_path / "x.jsonl", [problem()])
    with pytest.raises(UserError, match=message):
        benchmarks.load(name, data, Choice(**known | choice))


def test_a_file_without_a_column_is_refused_with_what_it_has(tmp_path):
    path = made.write_lines(tmp_path / "x.jsonl", [{"task_id": "a", "prompt": "b"}])
    with pytest.raises(UserError, match=r"line 1: the column 'entry_point' is missing; .* It has task_id, prompt"):
        benchmarks.load("humaneval", path, made.CHOICE)


def test_a_task_that_stands_twice_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"line 2: the task 'q1' also stands at .*line 1"):
        contest(tmp_path, problem(), problem())


def test_the_chosen_prompt_of_bigcodebench_is_shown_and_instruct_has_no_code():
    choice = Choice(split="instruct", since="", until="", limit=3, shots="")
    found = benchmarks.load("bigcodebench-hard", made.real("bigcodebench_hard.json.gz"), choice)
    assert len(found.tasks) == 3
    with pytest.raises(UserError, match="has no prompt in the style 'base'"):
        prompts.check_style("base", found)
    shown = prompts.shown("evalplus-vllm", found, found.tasks[0])
    assert "```" not in shown.messages[0][1].split("solves the following problem")[0]
    assert shown.prefill.endswith("corresponding tests:\n```python\n")


def test_evalplus_prompts_are_those_of_evalplus():
    benchmark, task = made.benchmark(), made.task("add", "+")
    code = task.prompts.code.strip()
    assert prompts.shown("base", benchmark, task).text == code + "\n"
    openai = prompts.shown("evalplus-openai", benchmark, task)
    assert openai.messages == (
        (
            "user",
            "Please provide a self-contained Python script that solves the following problem in a markdown code "
            f"block:\n```python\n{code}\n```",
        ),
    )
    vllm = prompts.shown("evalplus-vllm", benchmark, task)
    assert vllm.messages[0][1].endswith(f"code block:\n```\n{code}\n```\n")
    assert vllm.stops[-1] == "\n```\n"


def test_plus_tasks_keep_base_and_plus_apart():
    found = benchmarks.load("humaneval+", made.real("HumanEvalPlus.jsonl.gz"), made.CHOICE)
    task = found.tasks[32]
    assert [suite.name for suite in task.suites] == ["base", "plus"]
    assert all(isinstance(suite.tests, CallTests) and suite.tests.oracle == "root" for suite in task.suites)
