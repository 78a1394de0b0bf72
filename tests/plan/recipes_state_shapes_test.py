"""Every recipe states the shape of its model, so that it is planned without a network."""

import math

import jax
import pytest

from iterpref_jax import settings
from iterpref_jax.models.hf_checkpoint import abstract_params
from iterpref_jax.models.hf_config import from_hf
from iterpref_jax.plan.model_shape import NAME, model_shape
from tests.support.real_configs import FILES
from tests.support.runs import ROOT

RECIPES = sorted(path.stem for path in (ROOT / "configs").glob("*_*.py") if path.stem != "__init__")
# What the hub counts in the checkpoints of models whose config.json is none of ours.
PARAMETERS = {
    "Qwen/CodeQwen1.5-7B": 7_250_284_544,
    "Qwen/Qwen2.5-Coder-0.5B-Instruct": 494_032_768,
    "Qwen/Qwen2.5-Coder-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen2.5-Coder-32B-Instruct": 32_763_876_352,
    "deepseek-ai/deepseek-coder-7b-base-v1.5": 6_910_365_696,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "mistralai/Mistral-7B-Instruct-v0.3": 7_248_023_552,
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_stated_shape_is_that_of_the_recipes_model(recipe):
    config = settings.load_config(f"{ROOT}/configs/{recipe}.py", ["data.path=none"])
    about, run = settings.read_section(config, "plan"), settings.read_run(config)
    found, name = model_shape(run.model, about.model, None), about.model[NAME]
    if name in FILES:
        assert found == from_hf(FILES[name])
    else:
        leaves = jax.tree.leaves(abstract_params(found, "float32"))
        assert sum(math.prod(leaf.shape) for leaf in leaves) == PARAMETERS[name]
