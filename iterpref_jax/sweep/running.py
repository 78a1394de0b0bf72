"""Runs the jobs of a sweep one after the other, each step in a process of its own; what is finished stays finished."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from iterpref_jax.atomic import replace_text
from iterpref_jax.child import bound
from iterpref_jax.errors import UserError
from iterpref_jax.progress import Advance, progress, say, warn
from iterpref_jax.sweep.planning import HELDOUT, TRAIN, Job, Step
from iterpref_jax.train.metrics import read_metrics
from iterpref_jax.train.signals import stop_requested

STATE_FILE = "sweep.json"
_LOOK_S = 0.2
_TAIL_LINES = 15


class Failed(Exception):
    """A step that ended with an error; the message says where to look."""


def check(jobs: Sequence[Job]) -> None:
    """Refuses folders whose runs were other ones.

    Raises:
        UserError: with each setting that differs.
    """
    for job in jobs:
        # A name that is not there is of a version before it was told apart; commands were told as a whole then.
        before = {name: value for name, value in _state(job)["identity"].items() if name != "commands"}
        differing = sorted(name for name, value in before.items() if value != job.identity.get(name))
        if before and differing:
            listed = "\n  ".join(
                f"{name}: was {before.get(name)!r}, is {job.identity.get(name)!r}" for name in differing
            )
            raise UserError(
                f"{job.folder} holds {job} of another sweep:\n  {listed}\nuse another --workdir, the old values, or "
                "remove that folder"
            )


def is_finished(job: Job) -> bool:
    """Whether nothing is left to do for this run."""
    return [step.name for step in _left(job)] == []


def run(jobs: Sequence[Job]) -> tuple[dict[str, str], bool]:
    """Runs what is left; returns the errors by run, and whether it went through to the end (else it was stopped).

    A run that fails does not keep the others from running.
    """
    errors: dict[str, str] = {}
    steps = sum(len(_runs(job)) for job in jobs)
    left = sum(len([step for step in _left(job) if not step.dataset]) for job in jobs)
    with (
        stop_requested("stopping the command that runs; the same sweep goes on from there") as should_stop,
        progress("sweep", steps, "steps", start=steps - left) as advance,
    ):
        for job in jobs:
            try:
                if not _run(job, should_stop, advance):
                    return errors, False
            except Failed as error:
                warn(f"{job} failed: {error}")
                errors[str(job)] = str(error)
    return errors, True


def _run(job: Job, should_stop: Callable[[], bool], advance: Advance) -> bool:
    """Runs the steps that are left of one run; False if it was asked to stop."""
    left = _left(job)
    if not left:
        return True
    job.folder.mkdir(parents=True, exist_ok=True)
    state = _state(job) | {"identity": job.identity}
    state["steps"] = [name for name in state["steps"] if name not in {step.name for step in left}]
    _write(job, state)
    for step in left:
        if should_stop():
            return False
        say(f"{job}: {step.name} ({job.folder / step.name}.log)")
        log = job.folder / f"{step.name}.log"
        _put_aside(job, step)
        status = _wait(step, log, should_stop)
        if should_stop():
            return False
        if status or not _is_done(job, step):
            ended = f"exit status {status}" if status else "it stopped before its end"
            raise Failed(f"{step.name}: {ended}; the end of {log}:\n{_tail(log)}\nthe command was: {step}")
        if not step.dataset:
            state["steps"] = [*state["steps"], step.name]
            state["words"] = state.get("words", {}) | {step.name: list(step.words)}
            _write(job, state)
            advance(1, str(job))
    return True


def _wait(step: Step, log: Path, should_stop: Callable[[], bool]) -> int:
    words = bound([sys.executable, "-m", "iterpref_jax", *step.words])
    with log.open("a") as out:
        out.write(f"$ {step}\n")
        out.flush()
        # A session of its own: Ctrl-C asks the sweep, which asks the command, once.
        child = subprocess.Popen(words, stdout=out, stderr=out, start_new_session=True)
    asked = False
    try:
        while child.poll() is None:
            if should_stop() and not asked:
                asked = True
                child.terminate()
            time.sleep(_LOOK_S)
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
    return child.returncode


def _left(job: Job) -> list[Step]:
    """Returns the steps that are not done: a dataset is there or not, of the others the run's folder keeps account."""
    state = _state(job)
    left = [step for step in _runs(job) if step.name not in state["steps"] or _is_other(state, step)]
    if not left:
        return []
    return [step for step in job.steps if step.dataset and not _is_done(job, step)] + left


def _is_other(state: dict[str, Any], step: Step) -> bool:
    """Whether a command that has run stands in the file with other words now."""
    before = state.get("words", {}).get(step.name)
    return step.name not in (TRAIN, HELDOUT) and before is not None and before != list(step.words)


def _put_aside(job: Job, step: Step) -> None:
    """Renames what a command with other words has left, which would go on with it or refuse it."""
    out = job.folder / step.name
    if _is_other(_state(job), step) and out.exists():
        number = next(n for n in itertools.count(1) if not out.with_name(f"{step.name}.old-{n}").exists())
        out.rename(out.with_name(f"{step.name}.old-{number}"))


def _runs(job: Job) -> list[Step]:
    return [step for step in job.steps if not step.dataset]


def _is_done(job: Job, step: Step) -> bool:
    """Whether a step that ended has done its work: a command that was told to end does so without an error."""
    if step.dataset:
        return (Path(step.dataset) / "iterpref.json").exists()
    if step.name == HELDOUT:
        return (job.folder / HELDOUT / "heldout.json").exists()
    if step.name != TRAIN:
        return True
    lines = read_metrics(job.folder / "metrics.jsonl")
    planned = [line["planned_updates"] for line in lines if line["split"] == "start"]
    return bool(planned) and any(line["split"] == "train" and line["step"] == planned[-1] for line in lines)


def _state(job: Job) -> dict[str, Any]:
    path = job.folder / STATE_FILE
    return json.loads(path.read_text()) if path.exists() else {"identity": {}, "steps": []}


def _write(job: Job, state: dict[str, Any]) -> None:
    replace_text(job.folder / STATE_FILE, json.dumps(state, indent=1, sort_keys=True) + "\n")


def _tail(log: Path) -> str:
    return "\n".join("  " + line for line in log.read_text(errors="replace").splitlines()[-_TAIL_LINES:])
