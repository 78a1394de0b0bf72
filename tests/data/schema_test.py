"""Records, index and dataset folder: round trips, agreement with tfds, refusals."""

from __future__ import annotations

import dataclasses
import json
import pickle
import subprocess
import sys

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from iterpref_jax.data import schema, tfrecord
from iterpref_jax.errors import UserError

IDS = st.lists(st.integers(0, 2**31 - 1), max_size=20)


def _example(
    prompt=(5,),
    chosen=(1, 2, 3),
    rejected=(1, 2, 4),
    chosen_focus=(0, 0, 1),
    rejected_focus=(0, 0, 1),
    name="p",
    error_type="KeyError",
):
    ids = [np.array(x, np.int32) for x in (prompt, chosen, rejected)]
    focus = (np.array(x, np.uint8) for x in (chosen_focus, rejected_focus))
    return schema.Example(name, "t", *ids, *focus, error_type)


def _assert_equal(left, right):
    assert (*left[:2], left[-1]) == (*right[:2], right[-1])
    for a, b in zip(left[2:-1], right[2:-1], strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@st.composite
def _examples(draw):
    prompt, chosen, rejected = draw(IDS), draw(IDS), draw(IDS)
    focus = [[draw(st.integers(0, 1)) for _ in ids] for ids in (chosen, rejected)]
    return _example(prompt, chosen, rejected, *focus, name=draw(st.text()), error_type=draw(st.text()))


@hypothesis.given(_examples())
@hypothesis.settings(deadline=None)
def test_a_record_comes_back_as_it_went_in(example):
    _assert_equal(schema.deserialize(schema.serialize(example)), example)


def test_tfds_reads_our_record():
    example = _example(name="naïve/1")
    read = schema.features().deserialize_example_np(schema.serialize(example))
    assert [read[name].decode() for name in schema.TEXT_FIELDS] == ["naïve/1", "t", "KeyError"]
    arrays = [read[name] for name in schema.ID_FIELDS + schema.FOCUS_FIELDS]
    _assert_equal(("", "", *arrays, ""), ("", "", *example[2:-1], ""))


def test_we_read_the_record_that_tfds_writes():
    example, features = _example(), schema.features()
    data = features.serialize_example(features.encode_example(example._asdict()))
    _assert_equal(schema.deserialize(data), example)


def test_equal_pairs_give_equal_bytes():
    assert schema.serialize(_example()) == schema.serialize(_example())


def test_a_record_of_another_kind_is_refused_with_the_missing_fields():
    from tensorflow_datasets.proto import tf_example_pb2

    other = tf_example_pb2.Example()
    other.features.feature["text"].bytes_list.value.append(b"x")
    with pytest.raises(UserError, match=r"lacks.*prompt_ids"):
        schema.deserialize(other.SerializeToString())


def _brute_counts(example):
    chosen, rejected = example.chosen_ids.tolist(), example.rejected_ids.tolist()
    common = 0
    while common < min(len(chosen), len(rejected)) and chosen[common] == rejected[common]:
        common += 1
    c, r = example.chosen_focus.tolist(), example.rejected_focus.tolist()
    return {
        "prompt_len": len(example.prompt_ids),
        "chosen_len": len(chosen),
        "rejected_len": len(rejected),
        "common_len": common,
        "chosen_focus_count": sum(c),
        "rejected_focus_count": sum(r),
        "chosen_focus_end": max([i + 1 for i, x in enumerate(c) if x], default=0),
        "rejected_focus_end": max([i + 1 for i, x in enumerate(r) if x], default=0),
        "common_chosen_focus": sum(c[:common]),
        "common_rejected_focus": sum(r[:common]),
        "common_both_focus": sum(a * b for a, b in zip(c[:common], r[:common], strict=True)),
        "previous_len": -1,
    }


@hypothesis.given(st.lists(st.integers(0, 1), max_size=6), st.lists(st.integers(0, 1), max_size=6), st.data())
@hypothesis.settings(deadline=None)
def test_counts_equal_a_count_by_hand(chosen, rejected, data):
    focus = [[data.draw(st.integers(0, 1)) for _ in ids] for ids in (chosen, rejected)]
    example = _example((1, 2), chosen, rejected, *focus)
    assert schema.counts(example) == _brute_counts(example)


def test_a_record_counts_what_it_shares_with_the_record_before_it():
    first = _example(chosen=(1, 2, 3), rejected=(1, 5, 6), rejected_focus=(0, 1, 1))
    longer = _example(chosen=(1, 2, 3), rejected=(1, 5, 6, 7), rejected_focus=(0, 0, 0, 1))
    assert schema.counts(longer, first)["previous_len"] == 3
    assert schema.counts(first, first._replace(rejected_ids=np.array([4])))["previous_len"] == 0
    # Another focus of the same chosen side is no other side.
    assert schema.counts(longer, first._replace(chosen_focus=np.array([1, 1, 1])))["previous_len"] == 3
    for other in (first._replace(prompt_ids=np.array([6])), first._replace(chosen_ids=np.array([1, 2])), None):
        assert schema.counts(longer, other)["previous_len"] == -1


def _write_dataset(path, examples, shard_pairs=2):
    path.mkdir(parents=True)
    groups = [examples[i : i + shard_pairs] for i in range(0, len(examples), shard_pairs)]
    names = [path / schema.shard_name("train", i, len(groups)) for i in range(len(groups))]
    for name, group in zip(names, groups, strict=True):
        tfrecord.write_records(name, map(schema.serialize, group))
    index = schema.index_shards(names)
    index.save(path / schema.index_name("train"))
    about = {"pairs": len(index), "shards": len(groups), "fingerprint": index.fingerprint()}
    metadata = {"schema_version": schema.SCHEMA_VERSION, "splits": {"train": about}}
    (path / schema.METADATA_FILE).write_text(json.dumps(metadata))
    return examples


def _examples_of_lengths(n):
    return [_example(range(i), range(i + 1), range(i + 2), [0] * (i + 1), [1] * (i + 2), f"p{i}") for i in range(n)]


def test_pairs_are_read_at_random_across_shards(tmp_path):
    examples = _write_dataset(tmp_path / "d", _examples_of_lengths(5))
    split = schema.open_dataset(tmp_path / "d").split("train")
    assert len(split) == 5
    for i in (4, 0, 3, np.int64(1), 2):
        _assert_equal(split[i], examples[i])


def test_a_place_outside_the_split_is_an_index_error(tmp_path):
    _write_dataset(tmp_path / "d", _examples_of_lengths(2))
    split = schema.open_dataset(tmp_path / "d").split("train")
    with pytest.raises(IndexError):
        split[2]
    with pytest.raises(IndexError):
        split[-1]


def test_a_split_survives_pickling(tmp_path):
    examples = _write_dataset(tmp_path / "d", _examples_of_lengths(3))
    split = schema.open_dataset(tmp_path / "d").split("train")
    split[0]
    _assert_equal(pickle.loads(pickle.dumps(split))[2], examples[2])


def test_grain_reads_a_split_in_worker_order(tmp_path):
    grain = pytest.importorskip("grain")
    examples = _write_dataset(tmp_path / "d", _examples_of_lengths(4))
    source = grain.MapDataset.source(schema.open_dataset(tmp_path / "d").split("train"))
    assert [example.pair_id for example in source] == [example.pair_id for example in examples]


def test_the_index_comes_back_with_its_fingerprint(tmp_path):
    _write_dataset(tmp_path / "d", _examples_of_lengths(4))
    index = schema.load_index(tmp_path / "d" / "train.index.npz")
    index.save(tmp_path / "again.npz")
    assert schema.load_index(tmp_path / "again.npz").fingerprint() == index.fingerprint()
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "d" / "train.index.npz").read_bytes()


@pytest.mark.parametrize("column", schema.COLUMNS)
def test_the_fingerprint_changes_with_every_column(tmp_path, column):
    _write_dataset(tmp_path / "d", _examples_of_lengths(4))
    index = schema.load_index(tmp_path / "d" / "train.index.npz")
    changed = getattr(index, column).copy()
    changed[2] += 1
    assert dataclasses.replace(index, **{column: changed}).fingerprint() != index.fingerprint()


def test_the_fingerprint_changes_with_one_token(tmp_path):
    _write_dataset(tmp_path / "a", [_example(chosen=(1, 2, 3))])
    _write_dataset(tmp_path / "b", [_example(chosen=(1, 2, 7))])
    prints = {schema.open_dataset(tmp_path / x).split("train").index.fingerprint() for x in "ab"}
    assert len(prints) == 2


@pytest.mark.parametrize("damage", ["missing", "cut", "other"])
def test_a_lost_index_is_refused_and_can_be_rebuilt(tmp_path, damage):
    examples = _write_dataset(tmp_path / "d", _examples_of_lengths(3))
    path = tmp_path / "d" / "train.index.npz"
    good = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(good[:100] if damage == "cut" else b"hello")
    with pytest.raises(UserError, match="rebuild_index"):
        schema.open_dataset(tmp_path / "d").split("train")
    schema.rebuild_index(tmp_path / "d")
    assert path.read_bytes() == good
    _assert_equal(schema.open_dataset(tmp_path / "d").split("train")[1], examples[1])


def test_the_index_of_another_build_is_refused(tmp_path):
    _write_dataset(tmp_path / "a", _examples_of_lengths(3))
    _write_dataset(tmp_path / "b", _examples_of_lengths(4))
    (tmp_path / "a" / "train.index.npz").write_bytes((tmp_path / "b" / "train.index.npz").read_bytes())
    with pytest.raises(UserError, match="4 pairs found, 3 built"):
        schema.open_dataset(tmp_path / "a").split("train")


def test_rebuilding_refuses_changed_records(tmp_path):
    _write_dataset(tmp_path / "a", [_example(chosen=(1, 2, 3))])
    _write_dataset(tmp_path / "b", [_example(chosen=(1, 2, 7))])
    name = schema.shard_name("train", 0, 1)
    (tmp_path / "a" / name).write_bytes((tmp_path / "b" / name).read_bytes())
    with pytest.raises(UserError, match="not of one build"):
        schema.rebuild_index(tmp_path / "a")
    with pytest.raises(UserError, match=r"record 0 at byte 0.*not the one that was indexed"):
        schema.open_dataset(tmp_path / "a").split("train")[0]


def test_a_damaged_record_is_named_by_its_number_in_the_shard(tmp_path):
    _write_dataset(tmp_path / "d", _examples_of_lengths(4))
    split = schema.open_dataset(tmp_path / "d").split("train")
    shard = tmp_path / "d" / schema.shard_name("train", 1, 2)
    data = bytearray(shard.read_bytes())
    data[int(split.index.offset[3]) + 20] ^= 1
    shard.write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"train.tfrecord-00001-of-00002: record 1 at byte"):
        split[3]


def test_an_unknown_split_is_refused_with_a_suggestion(tmp_path):
    _write_dataset(tmp_path / "d", _examples_of_lengths(1))
    with pytest.raises(UserError, match="did you mean 'train'"):
        schema.open_dataset(tmp_path / "d").split("trian")


def test_folders_that_are_no_dataset_are_refused_with_the_reason(tmp_path):
    (tmp_path / "x.building").mkdir()
    (tmp_path / "plain").mkdir()
    (tmp_path / "tfds").mkdir()
    (tmp_path / "tfds" / "dataset_info.json").write_text("{}")
    reasons = {
        "absent": "no such folder",
        "x": "did not finish",
        "x.building": "did not finish",
        "plain": "not a dataset",
        "tfds": "tfds folder without",
    }
    for name, reason in reasons.items():
        with pytest.raises(UserError, match=reason):
            schema.open_dataset(tmp_path / name)


@pytest.mark.parametrize(("text", "reason"), [("{", "not JSON"), ('{"schema_version": 99}', "schema_version 99")])
def test_metadata_of_another_kind_is_refused(tmp_path, text, reason):
    (tmp_path / schema.METADATA_FILE).write_text(text)
    with pytest.raises(UserError, match=reason):
        schema.open_dataset(tmp_path)


def test_what_reads_records_is_imported_before_there_are_threads(tmp_path):
    """tensorflow-datasets, imported by two threads at once, may wait for itself: a run hung in its reference pass."""
    _write_dataset(tmp_path / "d", _examples_of_lengths(2))
    code = (
        f"import sys\nfrom iterpref_jax.data import schema\nschema.open_dataset({str(tmp_path / 'd')!r})\n"
        "assert 'tensorflow_datasets.proto' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
