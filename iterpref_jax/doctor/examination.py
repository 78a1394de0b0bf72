"""All checks in order: what costs nothing first, and nothing that hangs for ever."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from etils import epath

from iterpref_jax.doctor import devices, exercise, hosts, machine, software, storage
from iterpref_jax.doctor.finding import FAIL, Finding, fail, joined, ok, table
from iterpref_jax.errors import UserError
from iterpref_jax.models import hf_checkpoint
from iterpref_jax.models.checkpoint_folder import resolve
from iterpref_jax.models.config import ModelConfig
from iterpref_jax.models.decoder import Decoder
from iterpref_jax.models.shares import check_tokens
from iterpref_jax.parallel import distributed
from iterpref_jax.parallel.rules import Placement
from iterpref_jax.progress import say
from iterpref_jax.train.loop import plan_of
from iterpref_jax.train.optimizer import make_optimizer, make_schedule
from iterpref_jax.train.run import RunSettings, open_run
from iterpref_jax.train.same_run import check_same_config
from iterpref_jax.train.saved import steps_in
from iterpref_jax.train.step import abstract_state

_OPEN_S, _STEP_S, _COLLECTIVE_S = 300, 600, 120


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """What is examined: a run's settings, the configuration that they were read from (as a run stores it), its folder
    (or ""), and whether its dataset and model are real ones."""

    settings: RunSettings
    config: Mapping[str, Any]
    workdir: str
    has_data: bool
    has_model: bool


class Examination:
    """The findings of this process; the checks after `software` ask the other processes too."""

    def __init__(self, subject: Subject):
        self._subject = subject
        self.findings: list[Finding] = []

    def alone(self) -> None:
        """Looks at what needs neither devices nor other processes."""
        self._look("versions", lambda: software.check_versions(software.versions()))
        self._look("flags", software.check_flags)
        self._look("machine", machine.check_limits)

    def together(self) -> None:
        """Looks at devices, the network between them, and folders; all processes call it together."""
        self._look("hosts", lambda: hosts.check_hosts(software.versions()))
        if self._agree_to_go_on():
            self._compute()
        subject = self._subject
        self._look("run", self._run)
        if subject.has_data:
            self._look("data", lambda: storage.check_reading(subject.settings.data.path, "data"))
        if subject.workdir:
            self._look("workdir", self._same_run)
            needed = self._checkpoint_bytes()
            self._look("workdir", lambda: storage.check_writing(subject.workdir, "workdir", needed))
            self._look("shared", lambda: hosts.check_shared(subject.workdir))

    def _agree_to_go_on(self) -> bool:
        """A process that cannot open its devices would leave the others waiting in the first collective."""
        well = not any(finding.status == FAIL for finding in self.findings)
        everybody = distributed.gather("doctor well", well)
        if not all(everybody):
            say("the devices are not looked at before what is wrong so far is mended")
        return all(everybody)

    def _compute(self) -> None:
        settings = self._subject.settings
        busy = "another process may hold the devices (nvidia-smi, or lsof /dev/accel*, names it)"
        with self._within(_OPEN_S, "devices", "the devices did not open", busy):
            self._look("devices", devices.check_devices)
            self._look("devices", hosts.check_devices_alike)
        placement = self._placed()
        if not all(distributed.gather("doctor mesh", placement is not None)) or placement is None:
            return
        blocked = "open all ports between the hosts of a run, not the coordinator's alone; NCCL_DEBUG=INFO says more"
        with self._within(_COLLECTIVE_S, "collective", "a sum over all devices did not end", blocked):
            self._look("collective", lambda: exercise.check_collectives(placement))
        recipe = exercise.Recipe(
            compute=settings.model.compute, objective=settings.objective, optimizer=settings.optimizer
        )
        with self._within(_STEP_S, "step", "a small update did not end", blocked):
            self._look("step", lambda: exercise.check_step(recipe, placement))

    def _placed(self) -> Placement | None:
        found: list[Placement | None] = []

        def look() -> list[Finding]:
            findings, placement = devices.check_mesh(self._subject.settings.mesh)
            found.append(placement)
            return findings

        self._look("mesh", look)
        return found[0] if found else None

    def _run(self) -> list[Finding]:
        """Opens the run as `train` does: dataset, model, tokenizer, mesh and rows are checked, no weight is read."""
        settings, subject = self._subject.settings, self._subject
        if not subject.has_model:
            return []
        if subject.has_data:
            run = open_run(settings, subject.workdir or os.getcwd())
            updates = plan_of(run).steps
            pairs = len(run.train_split.index)
            return [ok("run", f"{run.parameters() / 1e9:.3g} B parameters, {pairs} pairs, {updates} updates")]
        config = self._model()
        if config is None:
            return []
        _, placement = devices.check_mesh(settings.mesh)
        assert placement is not None
        Decoder(config, settings.model.compute, placement, settings.model.lora)
        check_tokens(settings.rows.tokens, placement)
        return [ok("run", f"{settings.model.path or 'the model'} can be spread over the mesh")]

    def _same_run(self) -> list[Finding]:
        """A folder with checkpoints goes on with its own run or with none."""
        subject, folder = self._subject, epath.Path(self._subject.workdir)
        steps = steps_in(folder / "checkpoints")
        if not (steps and subject.has_data and subject.has_model):
            return []
        check_same_config(subject.workdir, json.loads((folder / "config.json").read_text()), subject.config)
        return [ok("workdir", f"holds this run up to update {steps[-1]}")]

    def _model(self) -> ModelConfig | None:
        """The shape of the model, where its folder says it."""
        path = self._subject.settings.model.path
        return hf_checkpoint.model_config(resolve(path)) if path else None

    def _checkpoint_bytes(self) -> int:
        """What the run's checkpoints will take beside those that are there, with the one that is being saved.

        0 where the model is not known.
        """
        settings = self._subject.settings
        try:
            config = self._model() if self._subject.has_model else None
        except UserError:
            return 0  # the check `run` says why
        if config is None:
            return 0
        optimizer = make_optimizer(settings.optimizer, make_schedule(settings.optimizer, 1))
        decoder = Decoder(config, settings.model.compute, None, settings.model.lora)
        state = abstract_state(decoder, optimizer, settings.model.param_dtype)
        leaves = jax.tree.leaves((state.params, state.opt_state))
        most = settings.train.keep_checkpoints + bool(settings.train.keep_best) + 1
        there = len(steps_in(epath.Path(self._subject.workdir) / "checkpoints"))
        return max(1, most - there) * sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves)

    def _look(self, check: str, look: Callable[[], list[Finding]]) -> None:
        """Runs one check; whatever it raises is a finding too, because the next check may say why."""
        try:
            self.findings += look()
        except UserError as error:
            self.findings.append(fail(check, str(error), ""))
        except Exception as error:
            text = (
                f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
            )
            self.findings.append(fail(check, text[:400], ""))

    @contextlib.contextmanager
    def _within(self, seconds: float, check: str, text: str, advice: str) -> Iterator[None]:
        """Ends the process with a finding if the body does not end: what hangs below Python cannot be stopped."""

        def expired() -> None:
            found = [*self.findings, fail(check, f"{text} within {seconds:g} s", advice)]
            print(table(joined([found])), flush=True)
            sys.stderr.flush()
            os._exit(1)

        timer = threading.Timer(seconds, expired)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
