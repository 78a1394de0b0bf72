"""The dataset as a TensorFlow Datasets builder, for `tfds build` and `tfds.load`; it runs `build` and copies its pairs.

    tfds build codeflow --imports=iterpref_jax.data.codeflow_tfds --file_format=array_record --data_dir=DATA \
      --config='{"name": "mine", "folder": "FOLDER", "inputs": ["trajectories.jsonl"], "settings": "settings.json"}'

`FOLDER` is the dataset that `build` makes (or continues, or has made: then `inputs` and `settings` may be left out);
`settings.json` holds the settings as `iterpref.json` lists them under "settings", and may hold "workers".
The folder that `build` makes is itself a tfds dataset: `tfds.builder_from_directory(FOLDER)` needs none of this.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any, get_type_hints

import tensorflow_datasets as tfds
from etils import epath

from iterpref_jax.data import build, schema
from iterpref_jax.errors import UserError, did_you_mean


@dataclasses.dataclass(kw_only=True)
class CodeflowConfig(tfds.core.BuilderConfig):
    """Where the pairs come from: a built `folder`, or `inputs` and `settings` (a dict or a JSON file) to build it."""

    folder: str = ""
    inputs: tuple[str, ...] = ()
    settings: dict[str, Any] | str = ""


class Codeflow(tfds.core.GeneratorBasedBuilder):
    """Pairs of programs as token ids, with the tokens in which they differ."""

    name = schema.DATASET_NAME
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = []
    builder_config_cls = CodeflowConfig

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=schema.features(), description="Preference pairs of programs (iterpref_jax)."
        )

    def _split_generators(self, dl_manager):
        dataset = _dataset(self.builder_config)
        return {name: self._generate_examples(dataset.split(name)) for name in dataset.splits}

    def _generate_examples(self, split: schema.Split) -> Iterator[tuple[int, dict[str, Any]]]:
        for number in range(len(split)):
            yield number, split[number]._asdict()


def settings_from_json(stored: dict[str, Any]) -> build.BuildSettings:
    """Returns the settings that `iterpref.json` lists. Raises UserError for a missing or an unknown name."""
    return _from_json(build.BuildSettings, {"workers": 0} | stored, "settings")


def _from_json(kind: type, stored: dict[str, Any], where: str):
    hints = get_type_hints(kind)
    unknown = [f"{name!r}{did_you_mean(name, hints)}" for name in stored if name not in hints]
    missing = [name for name in hints if name not in stored]
    if unknown or missing:
        raise UserError(f"{where}: unknown names {unknown}, missing names {missing}; wanted {list(hints)}")
    values = {
        name: _from_json(hint, stored[name], f"{where}.{name}") if dataclasses.is_dataclass(hint) else stored[name]
        for name, hint in hints.items()
    }
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def _dataset(config: CodeflowConfig | None) -> schema.Dataset:
    if config is None or not getattr(config, "folder", ""):
        raise UserError("the codeflow builder needs a config with a folder: " + __doc__.split("\n\n")[1])
    if config.inputs:
        settings = config.settings
        if isinstance(settings, str):
            settings = json.loads(epath.Path(settings).read_text())
        build.build(list(config.inputs), config.folder, settings_from_json(settings))
    return schema.open_dataset(config.folder)
