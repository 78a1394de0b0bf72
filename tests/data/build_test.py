"""Builds from end to end: what comes out and what is refused."""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from iterpref_jax.codeflow import focus as focusing
from iterpref_jax.codeflow import records
from iterpref_jax.codeflow.pairs import PairSettings
from iterpref_jax.data import build, build_report, chunks, schema, tfrecord
from iterpref_jax.errors import UserError
from tests.data import tiny

pytestmark = pytest.mark.usefixtures("small_chunks")

ROOT = pathlib.Path(__file__).parents[2]


def test_every_pair_is_built_or_counted_under_its_rule(histories, tokenizer_path, tmp_path):
    report = build.build([histories], tmp_path / "d", tiny.build_settings(tokenizer_path))
    # 30 histories x 2 earlier versions; in 6 of them the last failing version lacks one line of the good one.
    assert report.dropped["empty_focus"] == 6
    assert report.pairs == {"train": 60 - 6}
    assert sum(report.dropped.values()) == 6
    assert len(report.dropped) == 14


def test_the_records_are_the_pairs_in_input_order(histories, tokenizer_path, tmp_path):
    build.build([histories], tmp_path / "d", tiny.build_settings(tokenizer_path))
    split = schema.open_dataset(tmp_path / "d").split("train")
    kept = [f"h{i}#v{v}" for i in range(30) for v in (0, 1) if not (v == 1 and i % 5 == 0)]
    assert [split[i].pair_id for i in range(len(split))] == kept
    example = split[1]
    tokenizer = tiny.byte_level().backend_tokenizer
    assert tokenizer.decode(example.prompt_ids.tolist()) == "Write f0.\n"
    text = "```python\ndef f1(a, b):\n    c = a * 1\n    return c + b\n```</s>"
    assert tokenizer.decode(example.chosen_ids.tolist(), skip_special_tokens=False) == text
    focus = tokenizer.decode(example.rejected_ids[example.rejected_focus == 1].tolist())
    assert focus.strip("\n") == "    return 1 - b"


def test_the_index_equals_one_made_from_the_records(histories, tokenizer_path, tmp_path):
    build.build([histories], tmp_path / "d", tiny.build_settings(tokenizer_path, shard_pairs=10))
    names = [tmp_path / "d" / schema.shard_name("train", i, 6) for i in range(6)]
    built = schema.open_dataset(tmp_path / "d").split("train").index
    assert schema.index_shards(names).fingerprint() == built.fingerprint()


def test_groups_of_pairs_do_not_end_where_chunks_do(histories, tokenizer_path, tmp_path, monkeypatch):
    groups = {}
    for size in (5, 64):
        monkeypatch.setattr(chunks, "CHUNK_PAIRS", size)
        build.build([histories], tmp_path / str(size), tiny.build_settings(tokenizer_path))
        groups[size] = schema.open_dataset(tmp_path / str(size)).split("train").index.previous_len
    # Both versions of a history have one prompt and one chosen side; every fifth history keeps only its first version.
    assert (groups[5] >= 0).tolist() == [v == 1 for i in range(30) for v in (0, 1) if not (v == 1 and i % 5 == 0)]
    np.testing.assert_array_equal(groups[5], groups[64])


def test_shards_hold_as_many_pairs_as_asked(histories, tokenizer_path, tmp_path):
    build.build([histories], tmp_path / "d", tiny.build_settings(tokenizer_path, shard_pairs=10))
    shards = sorted((tmp_path / "d").glob("codeflow-train.tfrecord-*"))
    assert [path.name[-14:] for path in shards] == [f"{i:05d}-of-00006"[-14:] for i in range(6)]
    assert [sum(1 for _ in tfrecord.iterate(path)) for path in shards] == [10, 10, 10, 10, 10, 4]


def test_a_task_lies_in_one_split_only(histories, tokenizer_path, tmp_path):
    report = build.build([histories], tmp_path / "d", tiny.build_settings(tokenizer_path, eval_fraction=0.4))
    dataset = schema.open_dataset(tmp_path / "d")
    tasks = {name: {dataset.split(name)[i].task for i in range(report.pairs[name])} for name in dataset.splits}
    assert dataset.splits == ("train", "eval")
    assert not tasks["train"] & tasks["eval"]
    assert len(tasks["train"] | tasks["eval"]) == 15


def _named_apart(path):
    """15 prompts with two histories each, every history a task of its own."""
    rows = [dataclasses.replace(one, meta={"task": one.task_id}) for one in tiny.trajectories(30)]
    records.write_trajectories(path, rows)
    return path


def test_held_out_pairs_whose_prompt_is_trained_on_are_counted_and_warned_of(tokenizer_path, tmp_path, capsys):
    histories = _named_apart(tmp_path / "histories.jsonl")
    report = build.build([histories], tmp_path / "d", tiny.build_settings(tokenizer_path, eval_fraction=0.4))
    dataset = schema.open_dataset(tmp_path / "d")
    train, held_out = ([dataset.split(name)[i] for i in range(report.pairs[name])] for name in ("train", "eval"))
    known = {one.prompt_ids.tobytes() for one in train}
    shared = sum(one.prompt_ids.tobytes() in known for one in held_out)
    assert report.content["eval_pairs_with_train_prompt"] == shared > 0
    warning = f"{shared} of {len(held_out)} eval pairs have a prompt that train has too"
    assert warning in capsys.readouterr().err
    assert warning in (tmp_path / "d" / "report.md").read_text()


def test_histories_of_one_prompt_without_named_tasks_lie_in_one_split(tokenizer_path, tmp_path, capsys):
    rows = [dataclasses.replace(one, meta={}) for one in tiny.trajectories(30)]
    records.write_trajectories(tmp_path / "histories.jsonl", rows)
    settings = tiny.build_settings(tokenizer_path, eval_fraction=0.4)
    report = build.build([tmp_path / "histories.jsonl"], tmp_path / "d", settings)
    assert report.pairs["eval"] > 0
    assert report.content["eval_pairs_with_train_prompt"] == 0
    assert "warning" not in capsys.readouterr().err


def test_the_eval_fraction_is_that_of_the_tasks(tokenizer_path):
    settings = tiny.build_settings(tokenizer_path, eval_fraction=0.25)
    splits = collections.Counter(chunks.split_of(f"task {i}", settings) for i in range(4000))
    assert abs(splits["eval"] / 4000 - 0.25) < 0.03


def test_another_seed_draws_another_split(tokenizer_path):
    splits = [
        [
            chunks.split_of(f"task {i}", tiny.build_settings(tokenizer_path, eval_fraction=0.5, seed=seed))
            for i in range(50)
        ]
        for seed in (0, 1)
    ]
    assert splits[0] != splits[1]


def test_long_pairs_are_dropped_and_never_cut(histories, tokenizer_path, tmp_path):
    build.build([histories], tmp_path / "all", tiny.build_settings(tokenizer_path))
    index = schema.open_dataset(tmp_path / "all").split("train").index
    totals = index.prompt_len + np.maximum(index.chosen_len, index.rejected_len)
    limit = int(np.median(totals))
    report = build.build([histories], tmp_path / "short", tiny.build_settings(tokenizer_path, max_tokens=limit))
    assert report.dropped["too_many_tokens"] == (totals > limit).sum() > 0
    assert report.pairs["train"] == (totals <= limit).sum()


def test_the_focus_of_a_pair_that_is_too_long_by_far_is_not_looked_for(tokenizer_path, tmp_path, monkeypatch):
    sought, find = [], focusing.find_focus
    monkeypatch.setattr(focusing, "find_focus", lambda *words, **more: sought.append(words[3]) or find(*words, **more))
    pairs = [tiny.pair("x = 1\n" * n, "y = 2\n" * n, pair_id=f"p{n}") for n in (3, 100_000)]
    records.write_pairs(tmp_path / "p.jsonl", pairs)
    report = build.build([tmp_path / "p.jsonl"], tmp_path / "d", tiny.build_settings(tokenizer_path))
    assert sought == ["p3"]
    assert report.dropped["too_many_tokens"] == 1


def test_long_prompts_are_counted_apart(histories, tokenizer_path, tmp_path):
    build.build([histories], tmp_path / "all", tiny.build_settings(tokenizer_path))
    prompt = schema.open_dataset(tmp_path / "all").split("train").index.prompt_len
    limit = int(prompt.min())
    report = build.build([histories], tmp_path / "short", tiny.build_settings(tokenizer_path, max_prompt_tokens=limit))
    assert report.dropped["prompt_too_long"] == (prompt > limit).sum() > 0


def test_a_repeated_pair_is_dropped_wherever_its_first_one_was(tokenizer_path, tmp_path):
    pairs = [tiny.pair("x = 1\n", "x = 2\n", pair_id=f"p{i}") for i in range(20)]
    records.write_pairs(tmp_path / "p.jsonl", pairs)
    report = build.build([tmp_path / "p.jsonl"], tmp_path / "d", tiny.build_settings(tokenizer_path))
    assert report.pairs == {"train": 1}
    assert report.dropped["duplicate"] == 19


def test_pairs_that_become_equal_by_normalisation_are_repeats(tmp_path):
    tiny.byte_level(nfc=True).save_pretrained(tmp_path / "nfc")
    pairs = [tiny.pair(f"x = '{e}'\n", "x = 2\n", pair_id=e) for e in ("e\u0301", "\u00e9")]
    records.write_pairs(tmp_path / "p.jsonl", pairs)
    report = build.build([tmp_path / "p.jsonl"], tmp_path / "d", tiny.build_settings(tmp_path / "nfc"))
    assert report.dropped["duplicate"] == 1


@pytest.fixture
def ascii_tokenizer(tmp_path):
    """A tokenizer that knows no character beyond ASCII."""
    tiny.metaspace().save_pretrained(tmp_path / "ascii")
    return tmp_path / "ascii"


def _pairs_with(path, garbled, count=20):
    words = ["ß" if i in garbled else "s" for i in range(count)]
    pairs = [tiny.pair(f"x = '{word}'\ny = {i}\n", pair_id=f"p{i}", task=f"t{i}") for i, word in enumerate(words)]
    records.write_pairs(path, pairs)
    return path


def test_a_pair_that_the_tokenizer_cannot_give_back_is_dropped_and_shown(ascii_tokenizer, tmp_path):
    path = _pairs_with(tmp_path / "p.jsonl", garbled=(9, 17))
    report = build.build([path], tmp_path / "d", tiny.build_settings(ascii_tokenizer))
    assert report.dropped["not_reversible"] == 2
    assert report.pairs == {"train": 18}
    shown = (tmp_path / "d" / "report.md").read_text()
    assert "- `not_reversible`, the first: pair 'p9', chosen: the tokenizer does not give the text back" in shown


def test_a_tokenizer_that_cannot_give_many_pairs_back_is_refused_by_name(ascii_tokenizer, tmp_path):
    path = _pairs_with(tmp_path / "p.jsonl", garbled=(9, 11, 17))
    with pytest.raises(UserError, match=r"tokenizer at '.*ascii' does not give the text of 3 of 20 .*pair 'p9'"):
        build.build([path], tmp_path / "d", tiny.build_settings(ascii_tokenizer))
    assert not (tmp_path / "d").exists()


def test_histories_and_pairs_mix(histories, tokenizer_path, tmp_path):
    records.write_pairs(tmp_path / "p.jsonl", [tiny.pair("Answer: 1", "Answer: 2", form="text")])
    report = build.build([tmp_path / "p.jsonl", histories], tmp_path / "d", tiny.build_settings(tokenizer_path))
    assert report.pairs == {"train": 55}


def test_a_pair_id_in_two_inputs_is_refused(tokenizer_path, tmp_path):
    for name in "ab":
        records.write_pairs(tmp_path / f"{name}.jsonl", [tiny.pair("x = 1\n")])
    with pytest.raises(UserError, match="two pairs have the pair_id 'p0'"):
        build.build([tmp_path / "a.jsonl", tmp_path / "b.jsonl"], tmp_path / "d", tiny.build_settings(tokenizer_path))


@pytest.mark.slow
def test_the_result_does_not_depend_on_workers(histories, tokenizer_path, tmp_path):
    build.build([histories], tmp_path / "alone", tiny.build_settings(tokenizer_path, eval_fraction=0.3))
    build.build([histories], tmp_path / "two", tiny.build_settings(tokenizer_path, eval_fraction=0.3, workers=2))
    tiny.assert_same_folder(tmp_path / "alone", tmp_path / "two")


def test_tfds_opens_the_folder_without_tensorflow(histories, tokenizer_path, tmp_path):
    import tensorflow_datasets as tfds

    report = build.build(
        [histories], tmp_path / "d", tiny.build_settings(tokenizer_path, shard_pairs=10, eval_fraction=0.3)
    )
    info = tfds.builder_from_directory(tmp_path / "d").info
    assert info.name == "codeflow"
    assert {name: info.splits[name].num_examples for name in info.splits} == report.pairs
    for name in info.splits:
        assert all((tmp_path / "d" / shard).exists() for shard in info.splits[name].filenames)
    assert info.features["rejected_focus"].np_dtype == np.uint8


def test_the_dataset_carries_its_rules_and_tokenizer(histories, tokenizer_path, tmp_path):
    from iterpref_jax.data import text_rules

    build.build([histories], tmp_path / "d", tiny.build_settings(tokenizer_path))
    dataset = schema.open_dataset(tmp_path / "d")
    rules = text_rules.rules_from_json(dataset.metadata["text"])
    text_rules.check_tokenizer(text_rules.load_tokenizer(dataset.tokenizer_path), rules, "copy")
    assert dataset.metadata["focus"] == "line"
    assert rules.fence_open == "```python\n"


def test_building_again_is_said_and_changes_nothing(histories, tokenizer_path, tmp_path, capsys):
    first = build.build([histories], tmp_path / "d", tiny.build_settings(tokenizer_path))
    before = (tmp_path / "d" / "iterpref.json").stat().st_mtime_ns
    again = build.build([histories], tmp_path / "d", tiny.build_settings(tokenizer_path, workers=3))
    assert "already built" in capsys.readouterr().err
    assert again == first
    assert (tmp_path / "d" / "iterpref.json").stat().st_mtime_ns == before


def test_another_plan_does_not_overwrite_a_dataset(histories, tokenizer_path, tmp_path):
    build.build([histories], tmp_path / "d", tiny.build_settings(tokenizer_path))
    with pytest.raises(UserError, match=r"another plan \(changed: settings\)"):
        build.build([histories], tmp_path / "d", tiny.build_settings(tokenizer_path, seed=1))
    records.write_trajectories(histories, tiny.trajectories(29))
    with pytest.raises(UserError, match=r"another plan \(changed: inputs\)"):
        build.build([histories], tmp_path / "d", tiny.build_settings(tokenizer_path))


def test_a_folder_of_something_else_is_not_overwritten(histories, tokenizer_path, tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="no finished dataset: remove it"):
        build.build([histories], tmp_path / "d", tiny.build_settings(tokenizer_path))
    assert (tmp_path / "d" / "thesis.tex").read_text() == "precious"


def test_nothing_left_is_refused_with_the_counts(tokenizer_path, tmp_path):
    records.write_trajectories(tmp_path / "h.jsonl", [tiny.trajectories(1)[0]] * 1)
    settings = tiny.build_settings(tokenizer_path, pairs=PairSettings(choose="last", max_per_task=0, seed=0))
    with pytest.raises(UserError, match=r"no pair is left for training, of 1 pairs.*dropped: empty_focus 1"):
        build.build([tmp_path / "h.jsonl"], tmp_path / "d", settings)


def test_histories_without_any_pair_are_refused_with_the_counts(tokenizer_path, tmp_path):
    passing = dataclasses.replace(tiny.trajectories(1)[0], versions=tiny.trajectories(1)[0].versions[-1:])
    records.write_trajectories(tmp_path / "h.jsonl", [passing])
    with pytest.raises(UserError, match=r"of 0 pairs.*no_failing_version 1"):
        build.build([tmp_path / "h.jsonl"], tmp_path / "d", tiny.build_settings(tokenizer_path))


@pytest.mark.parametrize(
    ("inputs", "out", "reason"),
    [([], "d", "no input files"), (["none.jsonl"], "d", "none.jsonl: no such file"), (["x"], "gs://b/d", "local disk")],
)
def test_bad_paths_are_refused(tokenizer_path, inputs, out, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=reason):
        build.build(inputs, out, tiny.build_settings(tokenizer_path))


@pytest.mark.parametrize(("fraction", "warned"), [(1e-9, True), (0.0, False), (0.5, False)])
def test_a_held_out_split_that_drew_no_task_is_said(histories, tokenizer_path, tmp_path, capsys, fraction, warned):
    build.build([histories], tmp_path / "d", tiny.build_settings(tokenizer_path, eval_fraction=fraction))
    assert ("drew none of so few tasks" in capsys.readouterr().err) == warned


@pytest.mark.parametrize("changes", [{"eval_fraction": 1.0}, {"shard_pairs": 0}, {"workers": -1}, {"max_tokens": 0}])
def test_impossible_settings_are_refused_by_name(tokenizer_path, changes):
    with pytest.raises(UserError, match=next(iter(changes))):
        tiny.build_settings(tokenizer_path, **changes)


def test_layout_tokens_of_one_pair_by_hand():
    # prompt 10; chosen 20; rejected 15 of which 6 are common; the last focus token is the 9th.
    lengths = {"prompt_len": 10, "chosen_len": 20, "rejected_len": 15, "common_len": 6}

    def tokens(focus_end: int, previous=(-1,)) -> dict[str, int]:
        focus = {"rejected_focus_count": min(focus_end, 1), "rejected_focus_end": focus_end}
        rows = [dict.fromkeys(schema.COLUMNS, 0) | lengths | focus | {"previous_len": n} for n in previous]
        return build_report.layout_tokens(schema.make_index(rows))

    # Truncated, the last target of a side is predicted and never read: 19 of 20, 8 of 9.
    assert tokens(9) == {
        "separate": 10 + 20 + 10 + 15,
        "separate+truncate": 10 + 19 + 10 + 8,
        "shared": 10 + 6 + 14 + 9,
        "shared+truncate": 10 + 6 + 13 + 2,
        "tree": 10 + 6 + 14 + 9,
        "tree+truncate": 10 + 6 + 13 + 2,
    }
    # A second pair with the same chosen side leaves the first rejected side behind its 7th token.
    assert tokens(9, (-1, 7))["shared"] == 2 * (10 + 6 + 14 + 9)
    assert tokens(9, (-1, 7))["tree"] == 10 + 6 + 14 + 9 + 8
    assert tokens(9, (-1, 7))["tree+truncate"] == 10 + 6 + 13 + 2 + 1
    assert tokens(0)["separate+truncate"] == 10 + 19
    assert tokens(5)["shared+truncate"] == 10 + 19


def test_the_report_counts_what_the_index_holds(histories, tokenizer_path, tmp_path):
    report = build.build([histories], tmp_path / "d", tiny.build_settings(tokenizer_path))
    index = schema.open_dataset(tmp_path / "d").split("train").index
    assert sum(report.content["lengths"]["prompt"]["pairs"]) == len(index)
    assert report.content["lengths"]["rejected"]["max"] == index.rejected_len.max()
    markdown = (tmp_path / "d" / "report.md").read_text()
    assert "| train | 54 | 15 |" in markdown
    assert "| `empty_focus` | 6 |" in markdown


def test_importing_the_build_costs_no_jax_no_tfds_and_no_transformers():
    heavy = ("jax", "tensorflow_datasets", "transformers", "torch")
    code = f"import sys, iterpref_jax.data.build; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_metadata_is_json_that_names_every_part(histories, tokenizer_path, tmp_path):
    build.build([histories], tmp_path / "d", tiny.build_settings(tokenizer_path))
    metadata = json.loads((tmp_path / "d" / "iterpref.json").read_text())
    assert set(metadata) >= {"schema_version", "iterpref_jax", "focus", "text", "settings", "plan", "dropped", "splits"}
    assert "workers" not in metadata["settings"]
