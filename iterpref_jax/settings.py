"""From an ml_collections file to frozen dataclasses: the only reader of ConfigDict.

A config holds one section per part of the program; every key of every section is checked against the dataclass that
reads it, so that a misspelt key, a wrong type or a missing value is an error before any work starts.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import json
import sys
import traceback
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from iterpref_jax.errors import UserError, did_you_mean

# Section -> (module, class) that reads it. Imported on demand: `inject` must not import JAX.
SECTIONS = {
    "inject": ("iterpref_jax.codeflow.inject", "InjectSettings"),
    "endpoint": ("iterpref_jax.codeflow.endpoint", "EndpointSettings"),
    "imports": ("iterpref_jax.codeflow.imports.source", "ImportSettings"),
    "sandbox": ("iterpref_jax.codeflow.sandbox", "SandboxSettings"),
    "generate": ("iterpref_jax.codeflow.generate.settings", "GenerateSettings"),
    "build": ("iterpref_jax.data.chunks", "BuildSettings"),
    "hosts": ("iterpref_jax.parallel.host_settings", "HostsSettings"),
    "compile": ("iterpref_jax.train.compile_cache", "CompileSettings"),
    "decode": ("iterpref_jax.decode.request", "SamplerSettings"),
    "rounds": ("iterpref_jax.rounds.run", "RoundsSettings"),
    "serve": ("iterpref_jax.serve.scheduler", "ServeSettings"),
    "plan": ("iterpref_jax.plan.settings", "PlanSettings"),
    "evaluate": ("iterpref_jax.evaluate.evaluation", "EvaluateSettings"),
}
RUN_SECTION = ("iterpref_jax.train.run", "RunSettings")
SWEEP = ("iterpref_jax.sweep.settings", "SweepSettings")


def load_config(spec: str, overrides: Sequence[str] = ()) -> ml_collections.ConfigDict:
    """Returns the config of `FILE.py` or `FILE.py:ARG`, with overrides such as `model.path=DIR` applied.

    A config file may import its neighbours (`from configs import base`): the folder above its own is put on the path.

    Raises:
        UserError: no such file, no `get_config`, an unknown argument or key ("did you mean"), a value of another type.
    """
    file, _, arg = spec.partition(":")
    return override(_get_config(Path(file), arg), overrides)


def override(config: ml_collections.ConfigDict, overrides: Sequence[str]) -> ml_collections.ConfigDict:
    """Returns the config after applying overrides to it; see `load_config` for them and the errors."""
    for each in overrides:
        _override(config, each)
    return config


def to_json(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns the config as plain JSON values, as it is stored with a run."""
    return json.loads(config.to_json_best_effort())


def from_json(content: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """Returns the config that `to_json` stored."""
    return ml_collections.ConfigDict(dict(content))


def read_section(config: ml_collections.ConfigDict, section: str) -> Any:
    """Returns the settings of one section (a key of `SECTIONS`); see `load_config` for the errors."""
    if section not in config:
        raise UserError(f"the config lacks {section}; every field stands in configs/base.py")
    return _read(_load(*SECTIONS[section]), config[section], section)


def read_run(config: ml_collections.ConfigDict) -> Any:
    """Returns `RunSettings`: everything that `reference` and `train` read."""
    kind = _load(*RUN_SECTION)
    names = {field.name for field in dataclasses.fields(kind)}
    _check_keys(config.keys(), names | set(SECTIONS), "the config")
    return _read(kind, {name: config[name] for name in names if name in config}, "")


def read_sweep(config: ml_collections.ConfigDict) -> Any:
    """Returns the `SweepSettings` of a file of configs/sweeps."""
    return _read(_load(*SWEEP), config, "")


def read_model(config: ml_collections.ConfigDict) -> tuple[Any, Any]:
    """Returns `ModelSettings` and `MeshSettings` alone: a model without the run around it."""
    hints = typing.get_type_hints(_load(*RUN_SECTION))
    return _read(hints["model"], config["model"], "model"), _read(hints["mesh"], config["mesh"], "mesh")


def _load(module: str, name: str) -> type:
    return getattr(importlib.import_module(module), name)


def _get_config(file: Path, arg: str) -> ml_collections.ConfigDict:
    if not file.is_file():
        near = did_you_mean(file.name, [path.name for path in file.parent.glob("*.py")]) if file.parent.is_dir() else ""
        raise UserError(f"--config: {file} does not exist{near}")
    folder = file.resolve().parent
    # configs/sweeps is a package in a package.
    while (folder.parent / "__init__.py").exists():
        folder = folder.parent
    above = str(folder.parent)
    if above not in sys.path:
        sys.path.insert(0, above)
    spec = importlib.util.spec_from_file_location(f"_config_{file.stem}", file)
    # A path that ends in .py always has both.
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(f"--config: {file} defines no get_config(arg)")
    try:
        return module.get_config(arg)
    except ValueError as error:
        raise UserError(f"--config={file}:{arg}: {error}") from error
    except (AttributeError, KeyError, TypeError) as error:
        # What ml_collections raises for a misspelt key or a value of another type; the frame after ours is the file's.
        frames = traceback.extract_tb(error.__traceback__)[1:2]
        where = f", line {frames[0].lineno}" if frames else ""
        raise UserError(f"--config: {file}{where}: {error}") from error


def _override(config: ml_collections.ConfigDict, word: str) -> None:
    path, equals, text = word.partition("=")
    if not equals:
        raise UserError(f"--config.{word}: write --config.{word}=VALUE")
    *parents, leaf = path.split(".")
    node: Any = config
    for depth, key in enumerate([*parents, leaf]):
        if not isinstance(node, ml_collections.ConfigDict):
            above = ".".join(parents[:depth])
            raise UserError(f"--config.{path}: there is no {key!r}: {above} is {node!r}, no section")
        if key not in node and not _free_form(parents[:depth]):
            raise UserError(
                f"--config.{path}: there is no {key!r}{did_you_mean(key, node.keys())}; see configs/base.py"
            )
        if depth < len(parents):
            node = _section(node, key) if _free_form(parents[:depth]) else node[key]
    old: Any = node.get(leaf)
    if isinstance(old, ml_collections.ConfigDict):
        raise UserError(f"--config.{path} is a section; set one of {', '.join(map(str, old.keys()))}")
    with node.unlocked():
        node[leaf] = _parse(text, old, path)


def _section(node: ml_collections.ConfigDict, key: str) -> Any:
    """Returns what is under a key of a free form; where nothing is, a new section."""
    if node.get(key) is None:
        with node.unlocked():
            node[key] = ml_collections.ConfigDict()
    return node[key]


def _free_form(parents: Sequence[str]) -> bool:
    """model.init is a config.json in the making (its family checks it), the others are a server's and a template's."""
    free = list(parents[:2]) in (["model", "init"], ["endpoint", "extra"])
    return free or list(parents[:3]) == ["build", "text", "template_kwargs"]


def _parse(text: str, old: Any, path: str) -> Any:
    if isinstance(old, str):
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(old, tuple):
        return (value,) if not isinstance(value, (tuple, list)) else tuple(value)
    if old is not None and type(value) is not type(old):
        raise UserError(f"--config.{path}={text}: expected {type(old).__name__} (now {old!r})")
    return value


def _read(kind: Any, node: Any, path: str) -> Any:
    """Builds a dataclass from a mapping, checking keys and types at every level."""
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    _check_keys(node.keys(), names, path or "the config")
    missing = [f"{path}.{name}".lstrip(".") for name in names if name not in node]
    if missing:
        raise UserError(f"the config lacks {', '.join(missing)}; every field stands in configs/base.py")
    return kind(**{name: _value(hints[name], node[name], f"{path}.{name}".lstrip(".")) for name in names})


def _value(hint: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, (ml_collections.ConfigDict, Mapping)):
            raise UserError(f"{path}: expected a section, got {value!r}")
        return _read(hint, value, path)
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return value  # the dataclass names the choices in its own error
    if origin is dict:
        return value.to_dict() if isinstance(value, ml_collections.ConfigDict) else dict(value)
    if origin is tuple:
        item = typing.get_args(hint)[0]
        if not isinstance(value, (tuple, list)):
            raise UserError(f"{path}: expected a tuple, got {value!r}")
        return tuple(_value(item, each, path) for each in value)
    if origin is types.UnionType:
        hint = next(option for option in typing.get_args(hint) if option is not type(None))
        return None if value is None else _value(hint, value, path)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise UserError(f"{path}: expected {hint.__name__}, got {value!r} ({type(value).__name__})")
    return value


def _check_keys(found: typing.Iterable[str], known: typing.Iterable[str], where: str) -> None:
    known = list(known)
    for key in found:
        if key not in known:
            raise UserError(f"{where} has an unknown key {key!r}{did_you_mean(key, known)}; it would have no effect")
