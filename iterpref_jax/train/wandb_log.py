"""Metrics to Weights & Biases, beside the files; a run never waits for it, nor ends because of it."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import secrets
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from iterpref_jax.atomic import replace_text
from iterpref_jax.errors import UserError
from iterpref_jax.progress import say, warn

ID_FILE = "wandb.json"
# What is still to be sent at the end may take so long: after SIGTERM there is not much more time.
FINISH_S = 20.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogSettings:
    """`wandb_project`: where metrics are sent to as well; empty = nowhere. W&B reads its own WANDB_* variables."""

    wandb_project: str

    def check(self) -> None:
        """Raises UserError if the package is missing."""
        if self.wandb_project and importlib.util.find_spec("wandb") is None:
            raise UserError(
                f"log.wandb_project = {self.wandb_project!r} needs a package: pip install 'iterpref_jax[wandb]', or "
                "leave it empty"
            )


class Log(Protocol):
    """What takes the numbers of a run; see `metrics.MetricsLog`."""

    def has(self, step: int, split: str) -> bool: ...

    def write(self, step: int, split: str, values: Mapping[str, float | None]) -> None: ...

    def close(self) -> None: ...


class WandbLog:
    """Sends what another log writes to a run of W&B, until that fails for the first time: then it says so."""

    def __init__(self, log: Log, start: Callable[[], Any]):
        self._log = log
        self._run: Any = None
        self._run = self._attempt(start)

    def has(self, step: int, split: str) -> bool:
        return self._log.has(step, split)

    def write(self, step: int, split: str, values: Mapping[str, float | None]) -> None:
        self._log.write(step, split, values)
        prefix = "" if split == "train" else f"{split}/"
        told = {prefix + name: value for name, value in values.items() if value is not None}
        if (run := self._run) is not None:
            self._attempt(lambda: run.log(told | {"update": step}))

    def close(self) -> None:
        self._log.close()
        if self._run is None:
            return
        sending = threading.Thread(target=self._attempt, args=(self._run.finish,), name="wandb", daemon=True)
        sending.start()
        sending.join(FINISH_S)
        if sending.is_alive():
            warn(f"W&B has not taken everything within {FINISH_S:.0f} s; what is left: wandb sync {self._run.dir}")

    def _attempt(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:
            # Whatever W&B raises: its errors have no common class, and metrics.jsonl has the numbers anyway.
            self._run = None
            warn(f"W&B is left out from here on, metrics.jsonl goes on: {type(error).__name__}: {error}")
            return None


def sent_to_wandb(log: Log, settings: LogSettings, workdir: Path, config: dict[str, Any]) -> Log:
    """Returns the log, or one that sends to W&B as well, into the run that this folder began with."""
    if not settings.wandb_project:
        return log
    return WandbLog(log, lambda: _start(settings.wandb_project, workdir, config))


def _start(project: str, workdir: Path, config: dict[str, Any]) -> Any:
    import wandb  # pyright: ignore[reportMissingImports]

    run = wandb.init(
        project=project,
        id=_run_id(project, workdir),
        name=workdir.resolve().name,
        dir=workdir,
        config=config,
        resume="allow",
        settings=wandb.Settings(silent=True, console="off", init_timeout=60),
    )
    # Not W&B's own count of calls: a resumed run makes some updates again.
    run.define_metric("update")
    run.define_metric("*", step_metric="update")
    say(f"W&B: {run.dir if run.offline else run.url}")
    return run


def _run_id(project: str, workdir: Path) -> str:
    path = workdir / ID_FILE
    found = json.loads(path.read_text()) if path.exists() else {}
    if found.get("project") == project:
        return found["id"]
    new = {"project": project, "id": secrets.token_hex(8)}
    replace_text(path, json.dumps(new) + "\n")
    return new["id"]
