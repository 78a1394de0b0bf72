"""From a sweep to its runs: the commands of each of them, in the order in which they run, and what they depend on.

WORKDIR/data/KEY            datasets, one for each different build
WORKDIR/references/KEY      reference log-probs, shared by runs of one model, dataset and set of targets
WORKDIR/runs/VARIANT/SEED   a run: checkpoints, heldout/, OUT folders of extra commands, logs of its steps
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from iterpref_jax.data.schema import open_dataset
from iterpref_jax.errors import UserError, did_you_mean
from iterpref_jax.sweep.settings import SweepSettings, Variant
from iterpref_jax.train.reference import weighting_fingerprint
from iterpref_jax.train.run import RunSettings
from iterpref_jax.train.same_run import flat, may_change

BUILD, TRAIN, HELDOUT = "build", "train", "heldout"
# Of the held-out pairs, which are the same for all variants, these alone follow a variant's own model.
_OF_TEXT = ("model.path", "build.text.")
_INPUT = "input"
# Settings that extra commands read of a config, beside the run's own.
_OF_COMMANDS = ("evaluate.", "sandbox.", "decode.", "endpoint.", "compile.")
# What a resumed run may change and its numbers depend on all the same, most by rounding: a finished run has one value.
_OF_NUMBERS = (
    *("model.path", "model.param_dtype", "optimizer.state_dtype", "optimizer.master", "train.accumulate_dtype"),
    *("train.keep_best", "rows.lengths"),
)


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A config with its overrides: as JSON, and read."""

    config: dict[str, Any]
    settings: RunSettings


# Overrides (`KEY=VALUE`) -> the base config with them.
Load = Callable[[Sequence[str]], Loaded]


@dataclasses.dataclass(frozen=True)
class Step:
    """One `iterpref` command: its words, and the dataset folder that it makes ("" = none)."""

    name: str
    words: tuple[str, ...]
    dataset: str = ""

    def __str__(self) -> str:
        return shlex.join(("iterpref", *self.words))


@dataclasses.dataclass(frozen=True)
class Job:
    """One run: a variant with a seed; `identity` is what its numbers depend on, by name."""

    variant: str
    seed: int
    folder: Path
    steps: tuple[Step, ...]
    identity: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.variant}/seed-{self.seed}"


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Files of histories or pairs by the name that variants choose them by ("" = those without), with their hashes."""

    files: Mapping[str, tuple[str, ...]]

    def of(self, words: Sequence[str], who: str) -> tuple[str, ...]:
        """Returns the files that these overrides choose, or all unnamed ones."""
        names = [word.partition("=")[2] for word in words if word.partition("=")[0] == _INPUT]
        name = names[-1] if names else ""
        if name not in self.files:
            wanted = f"--input={name}=FILE" if name else "--input=FILE"
            hint = did_you_mean(name, self.files)
            raise UserError(f"variant {who!r} needs {wanted}; there is {', '.join(self.files) or 'no input'}{hint}")
        return self.files[name]


@dataclasses.dataclass(frozen=True)
class Planner:
    """What all runs have in common: `spec` is the base config, `given` the overrides of the command line."""

    sweep: SweepSettings
    spec: str
    workdir: Path
    inputs: Inputs | None
    given: tuple[str, ...]
    load: Load

    def jobs(self) -> list[Job]:
        """Returns every run, variant by variant.

        Raises:
            UserError: overrides that the config refuses, a build without its input, or a command that is no words.
        """
        return [self._job(variant, seed) for variant in self.sweep.variants for seed in self.sweep.seeds]

    def _job(self, variant: Variant, seed: int) -> Job:
        folder = self.workdir / "runs" / variant.name / f"seed-{seed}"
        own = self._own(variant)
        first = self._own(self.sweep.variants[0])
        held = [word for word in first if not word.startswith(_OF_TEXT)]
        held += [word for word in own if word.startswith(_OF_TEXT)]
        data, builds = self._data(own, variant)
        held_data, held_builds = self._data(held, self.sweep.variants[0])
        words = [*_without_build(own), f"seed={seed}", f"data.path={data}"]
        loaded = self._load([*own, f"seed={seed}", f"data.path={data}"], variant)
        if loaded.settings.objective.uses_reference:
            words.append(f"reference.path={self._reference(loaded, data)}")
        whole = ("--reference=" + self._whole_reference(loaded, held_data), f"--config.data.path={held_data}")
        # Equal builds may be said in different words.
        steps = {step.dataset: step for step in (*held_builds, *builds)}.values()
        train = Step(TRAIN, ("train", f"--config={self.spec}", *_flags(words), f"--workdir={folder}"))
        heldout = Step(HELDOUT, ("heldout", f"--workdir={folder}", f"--out={folder / HELDOUT}", *whole))
        extra = (self._extra(number, command, folder) for number, command in enumerate(self.sweep.commands))
        # What the sweep builds has its content in its name.
        name = _content if self.inputs is None else _name
        identity = _identity(loaded) | {"dataset": name(data), "held-out dataset": name(held_data)}
        return Job(variant.name, seed, folder, (*steps, train, heldout, *extra), identity)

    def _own(self, variant: Variant) -> list[str]:
        return [*self.sweep.overrides, *self.given, *variant.overrides]

    def _load(self, words: Sequence[str], variant: Variant) -> Loaded:
        try:
            return self.load([word for word in words if not _is_input(word)])
        except UserError as error:
            raise UserError(f"variant {variant.name!r}: {error}") from error

    def _data(self, words: Sequence[str], variant: Variant) -> tuple[str, list[Step]]:
        """Returns the dataset of these overrides, and the command that builds it where there are inputs."""
        builds = [
            word for word in words if word.startswith("build.") and word not in (*self.sweep.overrides, *self.given)
        ]
        if self.inputs is None:
            loaded = self._load([*words], variant)
            if builds or any(map(_is_input, words)):
                raise UserError(
                    f"variant {variant.name!r} has a dataset of its own ({', '.join(builds) or 'another input'}): give "
                    "--input=FILE, from which the sweep builds it"
                )
            return loaded.settings.data.path, []
        files = self.inputs.of(words, variant.name)
        loaded = self._load([*words, "data.path=unset"], variant)
        about = {name: value for name, value in loaded.config["build"].items() if name != "workers"}
        folder = self.workdir / "data" / _key({"build": about, "inputs": [_hash(file) for file in files]})
        flags = _flags(word for word in words if word.startswith(("build.", "model.path", "seed=")))
        inputs = (f"--input={file}" for file in files)
        step = Step(BUILD, ("build", f"--config={self.spec}", *flags, *inputs, f"--out={folder}"), str(folder))
        return str(folder), [step]

    def _reference(self, loaded: Loaded, data: str) -> Path:
        return self._shared(loaded, data, weighting_fingerprint(loaded.settings.weighting))

    def _whole_reference(self, loaded: Loaded, data: str) -> str:
        return str(self._shared(loaded, data, "whole"))

    def _shared(self, loaded: Loaded, data: str, targets: Any) -> Path:
        model = loaded.config["model"]
        # Weights drawn from the seed are another reference for each of them.
        seed = None if model["path"] else loaded.settings.seed
        return self.workdir / "references" / _key({"data": data, "model": model, "targets": targets, "seed": seed})

    def _extra(self, number: int, command: str, folder: Path) -> Step:
        out = folder / f"command-{number}"
        try:
            words = [word.format(run=folder, config=self.spec, out=out) for word in shlex.split(command)]
        except (LookupError, ValueError, AttributeError, TypeError) as error:
            raise UserError(
                f"sweep.commands[{number}], {command!r}, cannot be read ({error}): close its quotes; {{run}}, "
                "{config} and {out} alone are filled in, any other brace is written twice, {{ or }}"
            ) from error
        place = next((number + 1 for number, word in enumerate(words) if word.startswith("--config=")), None)
        if place is not None:
            given = (*self.sweep.overrides, *self.given)
            # In front of the command's own words, which go before.
            words[place:place] = _flags(word for word in given if word.startswith(_OF_COMMANDS))
        return Step(f"command-{number}", tuple(words[1:] if words[:1] == ["iterpref"] else words))


def script(jobs: Sequence[Job]) -> list[str]:
    """Returns the commands as a shell script: datasets first, then a line a run, which may go to different machines."""
    builds = {step.dataset: step for job in jobs for step in job.steps if step.dataset}.values()
    lines = ["#!/bin/sh", "# datasets: before all runs", *map(str, builds), "# runs: a line each, in any order"]
    return lines + [" && ".join(str(step) for step in job.steps if not step.dataset) for job in jobs]


def _identity(loaded: Loaded) -> dict[str, Any]:
    fields = flat(loaded.config)
    kept = {
        name: value
        for name, value in fields.items()
        if name.startswith("build.") or name in _OF_NUMBERS or not may_change(name)
    }
    kept.pop("build.workers", None)
    return kept


def _name(data: str) -> str:
    return Path(data).name


def _content(data: str) -> str:
    """Returns the fingerprints of a dataset's splits; the runs say what is wrong with one that cannot be opened."""
    try:
        return " ".join(about["fingerprint"] for about in open_dataset(data).metadata["splits"].values())
    except UserError:
        return _name(data)


def _flags(words: Any) -> list[str]:
    return [f"--config.{word}" for word in words if not _is_input(word)]


def _without_build(words: Sequence[str]) -> list[str]:
    return [word for word in words if not word.startswith(("build.", "data.path=", "reference.path="))]


def _is_input(word: str) -> bool:
    return word.partition("=")[0] == _INPUT


def _key(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _hash(file: str) -> str:
    path = Path(file)
    if not path.is_file():
        raise UserError(f"--input: {file} does not exist")
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()
