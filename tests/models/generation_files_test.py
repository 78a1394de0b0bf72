"""What ends an answer and how it is asked for, in the files that servers read."""

import json

import pytest
import transformers

from iterpref_jax.errors import UserError
from iterpref_jax.models import generation_files
from iterpref_jax.models.generation_files import Generation


def write(folder, config, ends, **changes):
    return Generation(**{"ends": ends, "config_from": None, "chat_template": ""} | changes).write(folder, config)


def stored(folder, **content):
    (folder / "generation_config.json").write_text(json.dumps(content))


def test_the_trained_end_comes_behind_the_models_own_and_all_else_stays(tmp_path):
    stored(tmp_path, eos_token_id=7, top_p=0.8, do_sample=True)
    write(tmp_path, {"eos_token_id": 5}, [9])
    found = transformers.GenerationConfig.from_pretrained(tmp_path)
    assert (found.eos_token_id, found.top_p, found.do_sample) == ([7, 9], 0.8, True)


def test_a_folder_without_a_generation_config_gets_one_of_the_models_special_ids(tmp_path):
    write(tmp_path, {"eos_token_id": 5, "bos_token_id": 2, "pad_token_id": None}, [9])
    found = transformers.GenerationConfig.from_pretrained(tmp_path)
    assert (found.eos_token_id, found.bos_token_id, found.pad_token_id) == ([5, 9], 2, None)


def test_an_end_that_is_known_already_is_not_named_twice():
    assert generation_files.joined({"eos_token_id": [7, 9]}, [9]) == {"eos_token_id": [7, 9]}
    assert generation_files.joined({"eos_token_id": 9}, [9]) == {"eos_token_id": 9}


def test_without_a_trained_end_nothing_is_written(tmp_path):
    assert generation_files.joined({"eos_token_id": 7}, ()) == {"eos_token_id": 7}
    write(tmp_path, {"eos_token_id": 7}, ())
    assert not list(tmp_path.iterdir())


def test_the_ids_of_both_files_are_read(tmp_path):
    stored(tmp_path, eos_token_id=[1, 106])
    (tmp_path / "config.json").write_text('{"eos_token_id": 3}')
    assert generation_files.read(str(tmp_path)) == [1, 106, 3]


def test_a_damaged_generation_config_is_named(tmp_path):
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(UserError, match=r"generation_config\.json is no JSON"):
        generation_files.read(str(tmp_path))


def test_tokenizer_template_and_generation_config_may_come_from_three_places(tmp_path):
    model, out = tmp_path / "model", tmp_path / "out"
    model.mkdir()
    out.mkdir()
    stored(out, top_k=1)
    (out / "chat_template.jinja").write_text("tokenizer")
    stored(model, top_k=2)
    assert write(out, {"eos_token_id": 7}, [9], config_from=str(model), chat_template="{{ x }}") == {
        "eos_token_id": [7, 9]
    }
    assert json.loads((out / "generation_config.json").read_text()) == {"top_k": 2, "eos_token_id": 9}
    assert (out / "chat_template.jinja").read_text() == "{{ x }}"
