"""The model's shape without its weights."""

import json

import pytest

from iterpref_jax import settings
from iterpref_jax.errors import UserError
from iterpref_jax.plan.model_shape import model_shape
from tests.support.real_configs import FILES, PARAMETERS
from tests.support.runs import ROOT

SEVEN = f"{ROOT}/configs/target_rpo_qwen2_5_coder_7b.py"
SHAPED = ("qwen2_5_coder_7b", "qwen3_coder_30b_a3b", "qwen3_8b", "codellama_7b")


def read(file, *overrides):
    config = settings.load_config(file, ["data.path=none", *overrides])
    return settings.read_run(config).model, settings.read_section(config, "plan").model


@pytest.mark.parametrize("recipe", SHAPED)
def test_recipes_state_the_shape_that_the_hub_has(recipe, tmp_path):
    model, stated = read(f"{ROOT}/configs/target_rpo_{recipe}.py")
    assert model.path in PARAMETERS
    (tmp_path / "config.json").write_text(json.dumps(FILES[model.path]))
    local, _ = read(f"{ROOT}/configs/target_rpo_{recipe}.py", f"model.path={tmp_path}")
    assert model_shape(model, stated, None) == model_shape(local, stated, None)


def test_a_folder_needs_config_json_alone_and_goes_before_the_recipe(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(FILES["Qwen/Qwen2.5-0.5B"]))
    model, stated = read(SEVEN, f"model.path={tmp_path}")
    assert model_shape(model, stated, None).hidden_size == 896


def test_the_recipes_shape_is_not_taken_for_another_model():
    model, stated = read(SEVEN, "model.path=Qwen/Qwen2.5-Coder-3B")
    with pytest.raises(UserError, match=r"Qwen2\.5-Coder-3B.*config\.json"):
        model_shape(model, stated, None)


def test_a_vocabulary_of_the_tokenizers_size_needs_a_dataset():
    model, stated = read(f"{SEVEN}:tiny")
    with pytest.raises(UserError, match="vocab_size is 0"):
        model_shape(model, stated, None)
