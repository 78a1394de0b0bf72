"""The tfds builder: it runs our build and copies its pairs, without TensorFlow, into ArrayRecord files."""

from __future__ import annotations

import json

import numpy as np
import pytest

from iterpref_jax.codeflow import records
from iterpref_jax.data import build, schema
from iterpref_jax.errors import UserError
from tests.data import tiny

tfds = pytest.importorskip("tensorflow_datasets")
codeflow_tfds = pytest.importorskip("iterpref_jax.data.codeflow_tfds")


@pytest.fixture
def made(tmp_path):
    """A tokenizer, a file of histories, and the settings as JSON."""
    tiny.byte_level().save_pretrained(tmp_path / "tokenizer")
    records.write_trajectories(tmp_path / "h.jsonl", tiny.trajectories(10))
    settings = tiny.build_settings(tmp_path / "tokenizer", eval_fraction=0.3)
    build.build([tmp_path / "h.jsonl"], tmp_path / "d", settings)
    stored = schema.open_dataset(tmp_path / "d").metadata["settings"]
    (tmp_path / "settings.json").write_text(json.dumps(stored))
    return tmp_path


def _prepared(made, **config):
    config = codeflow_tfds.CodeflowConfig(name="mine", **config)
    builder = tfds.builder("codeflow", config=config, data_dir=str(made / "tfds"), file_format="array_record")
    builder.download_and_prepare()
    return builder


def _assert_same_pairs(builder, dataset):
    assert set(builder.info.splits) == set(dataset.splits)
    for name in dataset.splits:
        split, source = dataset.split(name), builder.as_data_source(name)
        assert len(source) == len(split)
        found = {example["pair_id"].decode(): example for example in source}
        for i in range(len(split)):
            for field in schema.ID_FIELDS + schema.FOCUS_FIELDS:
                np.testing.assert_array_equal(found[split[i].pair_id][field], getattr(split[i], field))


def test_a_built_folder_becomes_array_records(made):
    _assert_same_pairs(_prepared(made, folder=str(made / "d")), schema.open_dataset(made / "d"))


def test_inputs_and_settings_are_built_by_the_same_code(made):
    config = {"folder": str(made / "new"), "inputs": [str(made / "h.jsonl")], "settings": str(made / "settings.json")}
    _assert_same_pairs(_prepared(made, **config), schema.open_dataset(made / "d"))
    old, new = (schema.open_dataset(made / name).split("train").index.fingerprint() for name in ("d", "new"))
    assert old == new


def test_a_prepared_dataset_opens_without_our_code(made):
    _prepared(made, folder=str(made / "d"))
    source = tfds.builder_from_directory(made / "tfds" / "codeflow" / "mine" / "1.0.0").as_data_source("train")
    assert source[0]["chosen_ids"].dtype == np.int32


def test_stored_settings_come_back(made):
    stored = json.loads((made / "settings.json").read_text())
    expected = tiny.build_settings(made / "tokenizer", eval_fraction=0.3)
    assert codeflow_tfds.settings_from_json(stored) == expected


def test_misspelt_settings_are_refused_with_their_place(made):
    stored = json.loads((made / "settings.json").read_text())
    stored["focus"]["mod"] = stored["focus"].pop("mode")
    with pytest.raises(UserError, match=r"settings\.focus: unknown names .*'mod'.*did you mean 'mode'"):
        codeflow_tfds.settings_from_json(stored)


def test_a_builder_without_folder_is_refused(tmp_path):
    builder = tfds.builder("codeflow", data_dir=str(tmp_path), file_format="array_record")
    with pytest.raises(UserError, match="needs a config with a folder"):
        builder.download_and_prepare()
