"""The shape of the model that is planned for, without its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iterpref_jax.data.schema import Dataset
from iterpref_jax.errors import UserError
from iterpref_jax.models.checkpoint_folder import resolve
from iterpref_jax.models.config import ModelConfig
from iterpref_jax.models.hf_checkpoint import model_config
from iterpref_jax.models.hf_config import from_hf
from iterpref_jax.train.run import ModelSettings, init_config

# The key of config.json that says whose it is.
NAME = "_name_or_path"


def model_shape(model: ModelSettings, stated: Mapping[str, Any], dataset: Dataset | None) -> ModelConfig:
    """Returns the shape of model.path or model.init.

    Of a local folder config.json is enough. Of a hub's model it is the config.json that the recipe states, so that a
    plan needs no network; `stated` counts for the model that it names only.

    Raises:
        UserError: a hub's model that the recipe says nothing of, no vocabulary, or a config.json that is refused.
    """
    if not model.path:
        if dataset is None and not model.init.get("vocab_size"):
            raise UserError(
                "model.init.vocab_size is 0, the tokenizer's, and there is no dataset with a tokenizer: set "
                "--config.model.init.vocab_size=N or --config.data.path=DIR"
            )
        return init_config(model, dataset) if dataset else from_hf(model.init)
    if Path(model.path).exists() or "://" in model.path:
        return model_config(resolve(model.path))
    if stated.get(NAME) == model.path:
        return from_hf(stated)
    raise UserError(
        f"model.path = {model.path!r} is no folder here, and the recipe does not state this model's shape: put its "
        "config.json (the weights are not needed) into a folder and give --config.model.path=FOLDER"
    )
