r"""The dataset as a TensorFlow Datasets builder: it runs `build` and copies its pairs into the format asked for.

    config = CodeflowConfig(name="mine", folder=FOLDER, inputs=("trajectories.jsonl",), settings="settings.json")
    tfds.builder("codeflow", config=config, data_dir=DATA, file_format="array_record").download_and_prepare()

or, the same from the shell:

    tfds build codeflow --imports=iterpref_jax.data.codeflow_tfds --file_format=array_record --data_dir=DATA \
      --config='{"name": "mine", "folder": "FOLDER", "inputs": ["trajectories.jsonl"], "settings": "settings.json"}'

`FOLDER` is the dataset that `build` makes (or continues, or has made: then `inputs` and `settings` may be left out);
`settings.json` holds the settings as `iterpref.json` lists them under "settings", and may hold "workers".
The folder that `build` makes is itself a tfds dataset: `tfds.builder_from_directory(FOLDER)` needs none of this.

Verified with tfds 4.9.10: `tfds.builder` with array_record and `as_data_source` need no TensorFlow; the command
`tfds build` imports tensorflow, apache_beam, mlcroissant and importlib_resources whatever it builds; `tfds.load` and
the format tfrecord need tensorflow.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any, ClassVar, get_type_hints

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
    # `tfds build --config=JSON` is refused for builders that list no config; this one only says what is missing.
    BUILDER_CONFIGS: ClassVar = [CodeflowConfig(name="unset")]
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


def _from_json(kind: Any, stored: dict[str, Any], where: str):
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
    if config is None or not config.folder:
        raise UserError(
            'the codeflow builder needs a config with a folder: --config=\'{"name": "mine", "folder": "FOLDER"}\', or '
            'CodeflowConfig(name="mine", folder="FOLDER"); FOLDER is what `iterpref` builds'
        )
    if config.inputs:
        settings = config.settings
        if isinstance(settings, str):
            settings = json.loads(epath.Path(settings).read_text())
        build.build(list(config.inputs), config.folder, settings_from_json(settings))
    return schema.open_dataset(config.folder)
