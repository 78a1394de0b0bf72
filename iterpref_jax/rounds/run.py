"""Rounds one after the other, each in a folder that stands alone: generation/, data/, train/, model/."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from iterpref_jax.errors import UserError
from iterpref_jax.progress import say
from iterpref_jax.rounds import server
from iterpref_jax.rounds.stages import Stages

NAME = "policy"
ITERPREF = (sys.executable, "-m", "iterpref_jax")
SUMMARY, PAGE = "rounds.json", "rounds.md"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoundsSettings:
    """`count` rounds. `serve` is the command of another server than our own, with {model}, {port} and {name} in it;
    the server has `start_s` seconds to answer."""

    count: int
    serve: str
    start_s: float

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"rounds.count: wanted at least 1, got {self.count}")
        try:
            shlex.split(self.serve)
        except ValueError as error:
            raise UserError(f"rounds.serve: {self.serve!r} is no command of a shell: {error}") from error
        for field in ("{model}", "{port}", "{name}"):
            if self.serve and field not in self.serve:
                raise UserError(
                    f"rounds.serve: {self.serve!r} lacks {field}; such as "
                    "'vllm serve {model} --port {port} --served-model-name {name}'"
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """The words that every stage gets (`--config=...` and overrides), what values all settings have by them, the first
    model and seed, and the tasks."""

    words: tuple[str, ...]
    settings: Mapping[str, Any]
    model: str
    seed: int
    tasks: str


def run(out: Path, asked: Asked, settings: RoundsSettings) -> list[dict[str, Any]]:
    """Does what is left of all rounds and returns a line about each; writes `rounds.json` and `rounds.md`.

    Raises UserError where a stage fails or a round finds no pair.
    """
    model, lines = asked.model, []
    for number in range(settings.count):
        folder = out / f"round-{number + 1:03d}"
        lines.append({"round": number + 1, "from": model, **_round(folder, number, model, asked, settings)})
        model = str(folder / "model")
        (out / SUMMARY).write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")
        (out / PAGE).write_text(as_markdown(lines), encoding="utf-8")
    return lines


def _round(folder: Path, number: int, model: str, asked: Asked, settings: RoundsSettings) -> dict[str, Any]:
    title = f"round {number + 1} of {settings.count}"
    stages = Stages(folder, title, asked.settings)
    made = _generate(stages, folder, number, model, asked, settings)
    if not made["pairs"]:
        raise UserError(
            f"{folder / 'generation'}: no pair came out of this round; its report.md says how the tasks ended. "
            "Give it more tasks, an easier --tasks file, or a stronger model"
        )
    data, train = folder / "data", folder / "train"
    pairs = folder / "generation" / "pairs.jsonl"
    build = [*ITERPREF, "build", *asked.words, f"--input={pairs}", f"--out={data}"]
    stages.run("build", build, data / "iterpref.json")
    learn = [*ITERPREF, "train", *asked.words, f"--config.data.path={data}", f"--config.model.path={model}"]
    stages.run("train", [*learn, f"--workdir={train}"], train / "report.md")
    export = [*ITERPREF, "export", f"--workdir={train}", f"--out={folder / 'model'}"]
    stages.run("export", export, folder / "model" / "config.json")
    say(f"{title}: {made['pairs']} pairs -> {folder / 'model'}")
    return _line(made)


def _generate(
    stages: Stages, folder: Path, number: int, model: str, asked: Asked, settings: RoundsSettings
) -> dict[str, Any]:
    out = folder / "generation"
    # Other tasks or samples in every round; the seeds of the build stay, so that no held-out task is trained on later.
    words = [*ITERPREF, "generate", *asked.words, f"--config.generate.seed={asked.seed + number}", f"--out={out}"]
    words += [f"--config.endpoint.model={NAME}", *([f"--tasks={asked.tasks}"] if asked.tasks else [])]
    port = server.free_port()
    if not stages.is_done("generate", words):
        command = server_command(model, port, asked, settings)
        with server.serving(command, port, folder / "serve.log", settings.start_s) as url:
            run = [*words, f'--config.endpoint.base_urls=("{url}",)']
            stages.run("generate", run, out / "report.json")
    return json.loads((out / "report.json").read_text(encoding="utf-8"))


def server_command(model: str, port: int, asked: Asked, settings: RoundsSettings) -> list[str]:
    """Returns the command that serves `model` at `port`: the user's, or our own."""
    if settings.serve:
        values = {"{model}": model, "{port}": str(port), "{name}": NAME}
        # Not `format`: other braces in the command, such as JSON, are its own.
        return [_filled(word, values) for word in shlex.split(settings.serve)]
    own = [*ITERPREF, "serve", *asked.words, f"--model={model}", f"--port={port}"]
    return [*own, f"--served-model-name={NAME}"]


def _filled(word: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        word = word.replace(name, value)
    return word


def _line(report: dict[str, Any]) -> dict[str, Any]:
    judged, passed = report["judged_tasks"], report["passed_at"]
    return {
        "tasks": report["about"]["tasks"],
        "judged": judged,
        "passed_first": passed.get("0", 0),
        "passed": sum(passed.values()),
        "pairs": report["pairs"],
    }


def as_markdown(lines: Sequence[dict[str, Any]]) -> str:
    """Returns a table with a line a round; shares are of the tasks whose tests gave a verdict."""
    rows = [
        f"| {line['round']} | {line['from']} | {line['tasks']} | {_share(line['passed_first'], line['judged'])} "
        f"| {_share(line['passed'], line['judged'])} | {line['pairs']} |"
        for line in lines
    ]
    head = [
        "| round | model that wrote | tasks | passed at first | passed after repairs | pairs |",
        "|---|---|---|---|---|---|",
    ]
    return "\n".join(["# Rounds", "", *head, *rows]) + "\n"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"
