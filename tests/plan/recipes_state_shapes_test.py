"""Every recipe states the shape of its model, so that it is planned without a network."""

import pytest

from iterpref_jax import settings
from iterpref_jax.models.hf_config import from_hf
from iterpref_jax.plan.model_shape import NAME, model_shape
from tests.support.real_configs import FILES
from tests.support.runs import ROOT

RECIPES = sorted(path.stem for path in (ROOT / "configs").glob("*_*.py") if path.stem != "__init__")


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_stated_shape_is_that_of_the_recipes_model(recipe):
    config = settings.load_config(f"{ROOT}/configs/{recipe}.py", ["data.path=none"])
    about, run = settings.read_section(config, "plan"), settings.read_run(config)
    found = model_shape(run.model, about.model, None)
    if file := FILES.get(about.model[NAME]):
        assert found == from_hf(file)
