from __future__ import annotations

import gzip
import json
import os
import pathlib

import hypothesis
import hypothesis.strategies as st
import pytest

from iterpref_jax.codeflow import preferences, records
from iterpref_jax.errors import UserError

USER = {"role": "user", "content": "Add two numbers."}
GOOD = {"role": "assistant", "content": "a + b"}
BAD = {"role": "assistant", "content": "a - b"}
LEAST_TRAJECTORY = {
    "task_id": "t",
    "instruction": "Add.",
    "test_code": "assert f(1, 2) == 3",
    "versions": [{"code": "f = max", "passed": False}],
}


def write_lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def trajectory(**changes):
    version = records.Version(code="x = 1\n", passed=True, error_type=None, stderr_tail="")
    fields = {
        "task_id": "t",
        "source": "s",
        "instruction": "Add.",
        "test_code": "assert x",
        "setup_code": "",
        "versions": (version,),
        "meta": {},
    }
    return records.Trajectory(**(fields | changes))


def pair(**changes):
    fields = {
        "pair_id": "t#v0",
        "task": "t",
        "prompt": "Add.",
        "chosen": "x = 1\n",
        "rejected": "x = 2\n",
        "form": "code",
        "meta": {},
    }
    return records.Pair(**(fields | changes))


def read_one(path):
    (only,) = records.read_pairs(path)
    return only


def complaint(reader, path):
    with pytest.raises(UserError) as caught:
        list(reader(path))
    return str(caught.value)


texts = st.text(st.characters(codec="utf-8"), max_size=20)
metas = st.dictionaries(
    texts, st.none() | st.booleans() | st.integers() | texts | st.lists(texts, max_size=2), max_size=3
)
messages = st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": texts})
pairs = st.builds(
    records.Pair,
    pair_id=texts.filter(bool),
    task=texts.filter(bool),
    prompt=texts | st.lists(messages, min_size=1, max_size=3).map(tuple),
    chosen=texts,
    rejected=texts,
    form=st.sampled_from(["code", "text"]),
    meta=metas,
)


@hypothesis.given(pairs)
@hypothesis.settings(deadline=None)
def test_a_written_pair_is_read_back_exactly(tmp_path_factory, written):
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl.gz"
    records.write_pairs(path, [written])
    assert list(records.read_pairs(path)) == [written]


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz", "folder/t.jsonl"])
def test_a_written_trajectory_is_read_back_exactly(tmp_path, name):
    failed = records.Version(code="\r\nx\x0cé\u2028\n", passed=False, error_type="NameError", stderr_tail="boom\n")
    one = trajectory(versions=(failed, failed), meta={"task": "group", "n": [1, None]}, setup_code="import os\n")
    assert records.write_trajectories(tmp_path / name, [one]) == 1
    assert list(records.read_trajectories(tmp_path / name)) == [one]


def test_optional_fields_have_their_documented_values(tmp_path):
    (only,) = records.read_trajectories(write_lines(tmp_path / "t.jsonl", LEAST_TRAJECTORY))
    version = records.Version(code="f = max", passed=False, error_type=None, stderr_tail="")
    assert (only.source, only.setup_code, only.meta, only.versions) == ("", "", {}, (version,))


def test_the_task_of_a_trajectory_is_its_meta_task_if_given():
    assert trajectory(meta={"task": "group"}).task == "group"


def test_histories_and_pairs_of_one_prompt_are_one_task_where_none_is_named(tmp_path):
    first, second = trajectory(task_id="a"), trajectory(task_id="b")
    only = read_one(write_lines(tmp_path / "p.jsonl", PLAIN | {"prompt": first.instruction}))
    assert first.task == second.task == only.task != trajectory(instruction="Another one.").task


def test_equal_records_give_equal_bytes(tmp_path):
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        records.write_pairs(tmp_path / name, [pair()])
    data = (tmp_path / "a.jsonl.gz").read_bytes()
    assert data == (tmp_path / "b.jsonl.gz").read_bytes()
    # Both files were written within one second: RFC 1952 keeps the time in bytes 4 to 7.
    assert data[4:8] == bytes(4)


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path):
    records.write_pairs(tmp_path / "pairs.jsonl", [pair()])

    def interrupted():
        yield pair(pair_id="new")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        records.write_pairs(tmp_path / "pairs.jsonl", interrupted())
    assert os.listdir(tmp_path) == ["pairs.jsonl"]
    assert read_one(tmp_path / "pairs.jsonl") == pair()


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"verions": []}, "line 2: unknown field 'verions'; did you mean 'versions'?; put extra information under"),
        ({"task_id": 3}, "line 2: the field 'task_id' must be a string, not 3"),
        ({"task_id": ""}, "line 2: the field 'task_id' is empty"),
        ({"task_id": "other"}, "line 2: the task_id 'other' also stands at"),
        ({"meta": []}, "line 2: the field 'meta' must be an object, not []"),
        ({"meta": {"task": 7}}, "line 2: meta: the field 'task' must be a string, not 7"),
        ({"source": None}, "line 2: the field 'source' must be a string, not null"),
        ({"versions": []}, "line 2: the field 'versions' is empty"),
        ({"versions": ["x = 1"]}, "line 2: versions[0] must be an object"),
        ({"versions": [{"code": "x"}]}, "line 2: versions[0]: the field 'passed' is missing; wanted true or false"),
        ({"versions": [{"code": "x", "passed": 1}]}, "'passed' must be true or false, not 1"),
        ({"versions": [{"code": "x", "passed": True, "pased": 1}]}, "unknown field 'pased'; did you mean 'passed'?"),
        ({"versions": [{"code": "x", "passed": True, "error_type": 1}]}, "'error_type' must be a string, not 1"),
    ],
)
def test_a_wrong_trajectory_is_refused_by_file_line_and_field(tmp_path, change, wanted):
    path = write_lines(tmp_path / "t.jsonl", LEAST_TRAJECTORY | {"task_id": "other"}, LEAST_TRAJECTORY | change)
    message = complaint(records.read_trajectories, path)
    assert message.startswith(f"{path}, line 2")
    assert wanted in message


@pytest.mark.parametrize("field", ["task_id", "instruction", "test_code", "versions"])
def test_a_missing_field_is_named(tmp_path, field):
    row = {name: value for name, value in LEAST_TRAJECTORY.items() if name != field}
    message = complaint(records.read_trajectories, write_lines(tmp_path / "t.jsonl", row))
    assert f"line 1: the field {field!r} is missing" in message


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (b'{"a": 1,}\n', "line 1: malformed JSON"),
        (b'{"prompt": "caf\xe9"}\n', "line 1: not UTF-8 at byte 15"),
        (b'\n{"a": NaN}\n', "line 2: malformed JSON: NaN is not JSON"),
        (b'{"a": 1, "a": 2}\n', "line 1: malformed JSON: the field 'a' stands twice"),
        (b'{"a": "\\ud800"}\n', "line 1: half of a surrogate pair ('\\ud800')"),
        (b"[" * 100_000 + b"\n", "line 1: malformed JSON"),
        (b"3\n", "line 1: every row must be a JSON object, not 3"),
        (b"\n\n", "the file holds no rows"),
        (b"", "the file holds no rows"),
    ],
)
@pytest.mark.parametrize("reader", [records.read_trajectories, records.read_pairs])
def test_a_file_that_is_not_json_lines_is_refused(tmp_path, data, wanted, reader):
    (tmp_path / "f.jsonl").write_bytes(data)
    message = complaint(reader, tmp_path / "f.jsonl")
    assert message.startswith(str(tmp_path / "f.jsonl"))
    assert wanted in message


def test_a_file_that_is_absent_or_a_folder_or_cut_off_is_refused(tmp_path):
    assert "there is no such file" in complaint(records.read_pairs, tmp_path / "none.jsonl")
    assert "this is a folder" in complaint(records.read_pairs, tmp_path)
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "p"}\n')[:-4])
    assert "not a whole gzip file" in complaint(records.read_pairs, tmp_path / "cut.jsonl.gz")
    (tmp_path / "plain.jsonl.gz").write_bytes(b"{}\n")
    assert "not a whole gzip file" in complaint(records.read_pairs, tmp_path / "plain.jsonl.gz")


def test_line_separators_inside_strings_do_not_end_a_row(tmp_path):
    code = "a\u2028b\x85c\x0cd"
    (tmp_path / "p.jsonl").write_text(json.dumps(PLAIN | {"chosen": code}, ensure_ascii=False) + "\n")
    assert read_one(tmp_path / "p.jsonl").chosen == code


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path):
    for name, text in (("p.jsonl", json.dumps(PLAIN)), ("p.json", json.dumps([PLAIN]))):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert read_one(tmp_path / name).chosen == "a + b"


PLAIN = {"prompt": "Add.", "chosen": "a + b", "rejected": "a - b"}
AS_MESSAGES = ({"role": "user", "content": "Add two numbers."},)


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        (PLAIN, "Add."),
        ({"chosen": "Add: a + b", "rejected": "Add: a - b"}, "Add: a"),
        ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, AS_MESSAGES),
        ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, AS_MESSAGES),
        ({"prompt": [USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]}, AS_MESSAGES),
        ({"prompt": "Add two numbers.", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, AS_MESSAGES),
        ({"prompt": [USER], "chosen": "a + b", "rejected": "a - b"}, AS_MESSAGES),
    ],
)
def test_every_form_of_preference_data_is_read(tmp_path, row, prompt):
    only = read_one(write_lines(tmp_path / "p.jsonl", row))
    implicit = only.prompt == "Add: a"
    assert only.prompt == prompt
    assert (only.chosen, only.rejected) == ((" + b", " - b") if implicit else ("a + b", "a - b"))
    assert only.form == "text"


@pytest.mark.parametrize("name", ["p.json", "p.json.gz", "p.jsonl", "p.jsonl.gz", "lines.json", "p.parquet"])
def test_every_file_format_gives_the_same_pairs(tmp_path, name):
    path = tmp_path / name
    rows = [PLAIN, PLAIN | {"prompt": "Subtract.", "chosen": "é"}]
    if name.endswith(".parquet"):
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        is_array = name.startswith("p.json") and "jsonl" not in name
        data = (json.dumps(rows, indent=1) if is_array else "\n".join(map(json.dumps, rows))).encode()
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    got = list(records.read_pairs(path))
    assert [(p.prompt, p.chosen, p.rejected) for p in got] == [("Add.", "a + b", "a - b"), ("Subtract.", "é", "a - b")]
    stem = name.split(".")[0]
    assert [p.pair_id for p in got] == [f"{stem}/0", f"{stem}/1"]


def test_parquet_conversations_may_have_keys_that_only_some_messages_use(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    message = pyarrow.struct([(key, pyarrow.string()) for key in ("role", "content", "name")])
    schema = pyarrow.schema([("chosen", pyarrow.list_(message)), ("rejected", pyarrow.list_(message))])
    rows = [{"chosen": [USER, GOOD], "rejected": [USER, BAD]}]
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), tmp_path / "p.parquet")
    only = read_one(tmp_path / "p.parquet")
    assert (only.prompt, only.chosen, only.rejected) == (AS_MESSAGES, "a + b", "a - b")


def test_other_columns_go_to_meta(tmp_path):
    row = PLAIN | {"prompt_id": "x", "score_chosen": 9.5, "chosen_score": 1, "meta": {"seed": 1}}
    only = read_one(write_lines(tmp_path / "p.jsonl", row))
    assert only.meta == {"seed": 1, "prompt_id": "x", "score_chosen": 9.5, "chosen_score": 1}


def test_columns_that_only_begin_like_a_field_are_no_misspelling(tmp_path):
    row = {"prompt_id": 7, "chosen": "Add: a + b", "rejected": "Add: a - b"}
    assert read_one(write_lines(tmp_path / "p.jsonl", row)).meta == {"prompt_id": 7}


def test_parquet_values_that_json_lacks_become_text_in_meta(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    row = PLAIN | {"score": float("nan"), "raw": b"x", "weight": 0.5}
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "p.parquet")
    only = read_one(tmp_path / "p.parquet")
    assert only.meta == {"score": "nan", "raw": "b'x'", "weight": 0.5}
    records.write_pairs(tmp_path / "p.jsonl", [only])
    assert read_one(tmp_path / "p.jsonl").meta == only.meta


@pytest.mark.parametrize(("field", "value"), [("task", "t9"), ("task_id", "t9"), ("task_id", 9)])
def test_a_given_task_is_kept(tmp_path, field, value):
    only = read_one(write_lines(tmp_path / "p.jsonl", PLAIN | {field: value}))
    assert only.task == str(value)


def test_equal_prompts_are_one_task_and_others_are_not(tmp_path):
    rows = (PLAIN, PLAIN | {"chosen": "b + a"}, PLAIN | {"prompt": "Subtract."})
    first, second, third = records.read_pairs(write_lines(tmp_path / "p.jsonl", *rows))
    assert first.task == second.task != third.task


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        ({"prompt": "p", "choosen": "a", "rejected": "b"}, "unknown field 'choosen'; did you mean 'chosen'?"),
        ({"prompt": "p", "Chosen": "a", "rejected": "b"}, "unknown field 'Chosen'; did you mean 'chosen'?"),
        ({"promt": "p", "chosen": "a", "rejected": "b"}, "unknown field 'promt'; did you mean 'prompt'?"),
        ({"prompt": "p", "chosen": "a", "reject": "b"}, "unknown field 'reject'; did you mean 'rejected'?"),
        ({"prompt": "p", "chosen": "a"}, "the field 'rejected' must be a string or a list of messages, not nothing"),
        (
            {"instruction": "p", "chosen": "same a", "rejected": "same b"},
            "no field 'prompt', but a field 'instruction'",
        ),
        ({"chosen": "a", "rejected": "b"}, "do not begin alike"),
        ({"prompt": "p", "chosen": "a", "rejected": [BAD]}, "must both be strings or both lists"),
        ({"prompt": "p", "chosen": [], "rejected": [BAD]}, "the field 'chosen' is an empty list"),
        ({"prompt": "p", "chosen": [GOOD], "rejected": [BAD]}, "do not begin alike"),
        ({"prompt": [USER], "chosen": [GOOD, USER, GOOD], "rejected": [BAD]}, "'chosen' must be one final assistant"),
        ({"prompt": [USER], "chosen": [GOOD], "rejected": [USER]}, "'rejected' must be one final assistant"),
        ({"prompt": [USER], "chosen": [GOOD], "rejected": ["x"]}, "rejected[0] must be a message"),
        ({"prompt": [{"role": "user"}], "chosen": [GOOD], "rejected": [BAD]}, "prompt[0]: the field 'content' is miss"),
        ({"prompt": [USER | {"nam": "x"}], "chosen": [GOOD], "rejected": [BAD]}, "prompt[0]: unknown field 'nam'"),
        ({"chosen": "```\nx = 1\n```", "rejected": "```\nx = 2\n```"}, "have nothing in front of the code block"),
        (PLAIN | {"Form": "code"}, "unknown field 'Form'; did you mean 'form'"),
        (PLAIN | {"pairId": "a"}, "unknown field 'pairId'; did you mean 'pair_id'"),
        (PLAIN | {"form": "prose"}, "the field 'form' must be one of code, text, not 'prose'"),
        (PLAIN | {"pair_id": 1.5}, "the field 'pair_id' must be a string, not 1.5"),
        (PLAIN | {"task": True}, "the field 'task' must be a string, not true"),
        (PLAIN | {"meta": {"score": 1}, "score": 2}, "'score' is both a field and a key of 'meta'"),
    ],
)
def test_a_row_that_is_no_pair_is_refused(tmp_path, row, wanted):
    path = write_lines(tmp_path / "p.jsonl", row)
    message = complaint(records.read_pairs, path)
    assert message.startswith(f"{path}, line 1")
    assert wanted in message


def test_a_repeated_pair_id_is_refused(tmp_path):
    path = write_lines(tmp_path / "p.jsonl", PLAIN | {"pair_id": "x"}, PLAIN | {"pair_id": "x"})
    assert f"line 2: the pair_id 'x' also stands at {path}, line 1" in complaint(records.read_pairs, path)


def test_the_kind_of_a_file_is_known_by_its_first_row(tmp_path):
    records.write_trajectories(tmp_path / "t.jsonl", [trajectory()])
    records.write_pairs(tmp_path / "p.jsonl.gz", [pair()])
    assert records.file_kind(tmp_path / "t.jsonl") == "trajectories"
    assert records.file_kind(tmp_path / "p.jsonl.gz") == "pairs"
    write_lines(tmp_path / "x.jsonl", {"version": 1})
    with pytest.raises(UserError, match="did you mean 'versions'"):
        records.file_kind(tmp_path / "x.jsonl")


@pytest.fixture(scope="module")
def trl():
    return pytest.importorskip("trl.data_utils", reason="TRL is the reference here; it comes with the dev extra")


alike = st.text(alphabet="ab ", max_size=8)


# TRL raises on empty strings and wraps round where the two differ at once (see preferences.py): one start for both.
@hypothesis.given(start=st.sampled_from("ab "), ends=st.tuples(alike, alike))
def test_an_implicit_prompt_of_strings_is_that_of_trl(trl, start, ends):
    chosen, rejected = (start + end for end in ends)
    theirs = trl.extract_prompt({"chosen": chosen, "rejected": rejected})
    length = preferences.shared_length(chosen, rejected)
    assert (chosen[:length], chosen[length:], rejected[length:]) == tuple(theirs.values())


@hypothesis.given(turns=st.lists(st.sampled_from("xyz"), max_size=3), answers=st.permutations("ab"))
def test_an_implicit_prompt_of_conversations_is_that_of_trl(trl, turns, answers):
    shared = [USER, *({"role": "user", "content": turn} for turn in turns)]
    row = {
        f: [*shared, {"role": "assistant", "content": a}] for f, a in zip(("chosen", "rejected"), answers, strict=True)
    }
    theirs = trl.maybe_extract_prompt(row)
    prompt, *ours = preferences.split_preference(row, "here")
    assert list(prompt) == theirs["prompt"]
    assert ours == [theirs["chosen"][0]["content"], theirs["rejected"][0]["content"]]


@pytest.mark.parametrize("name", ["dev_sample", "dev_llm_turns_mbpp"])
def test_real_trajectories_are_read_and_written_exactly(tmp_path, name):
    folder = os.environ.get("ITERPREF_DATA")
    if not folder:
        pytest.skip("ITERPREF_DATA does not name the folder of real data")
    path = pathlib.Path(folder) / "trajectories" / f"{name}.jsonl.gz"
    if not path.exists():
        pytest.skip(f"ITERPREF_DATA has no trajectories/{name}.jsonl.gz")
    real = list(records.read_trajectories(path))
    records.write_trajectories(tmp_path / "copy.jsonl", real)
    assert list(records.read_trajectories(tmp_path / "copy.jsonl")) == real
