"""The training loop: restore or start, step, log, evaluate, save; ends cleanly and resumes exactly."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from etils import epath

from iterpref_jax.atomic import replace_text
from iterpref_jax.data.batch import RowBatch
from iterpref_jax.data.packing import Plan, training_plan
from iterpref_jax.data.pipeline import StepSource, iterate
from iterpref_jax.errors import UserError
from iterpref_jax.models.lora import parted
from iterpref_jax.models.transformer import Params
from iterpref_jax.parallel import distributed
from iterpref_jax.progress import Advance, progress, say
from iterpref_jax.train import alike
from iterpref_jax.train.best import parse_best
from iterpref_jax.train.checkpoint import Checkpoints
from iterpref_jax.train.compiled import abstract_batch
from iterpref_jax.train.flight import Clock, Flight, Update
from iterpref_jax.train.goodput import Ledger, session
from iterpref_jax.train.held_out import HeldOut
from iterpref_jax.train.host_rows import work_of
from iterpref_jax.train.lock import locked
from iterpref_jax.train.metrics import Work, first_bad, read_metrics
from iterpref_jax.train.optimizer import make_optimizer, make_schedule
from iterpref_jax.train.profile import Profiler
from iterpref_jax.train.reference_pass import ensure_reference
from iterpref_jax.train.run import Run, step_source
from iterpref_jax.train.same_run import check_same_run
from iterpref_jax.train.signals import Stop, stop_requested
from iterpref_jax.train.startup import Startup
from iterpref_jax.train.step import (
    Metrics,
    TrainState,
    abstract_state,
    init_state,
    jitted,
    make_train_step,
    state_shardings,
)
from iterpref_jax.train.wandb_log import Log
from iterpref_jax.train.watch import Watch, open_log


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended: the last update, and whether that was the planned last one."""

    step: int
    finished: bool


def train(run: Run, config: dict[str, Any], startup: Startup | None = None) -> Outcome:
    """Trains until the planned end or a request to stop; `config` (JSON) is stored and compared on resume.

    Writes config.json, metrics.jsonl, tensorboard/, checkpoints/ and profile/ under the run's folder. `startup` counts
    from the command's start, where it is given.

    Raises:
        UserError: a folder that holds another run, NaN or infinite metrics, data that does not fit.
    """
    startup = startup or Startup()
    alike.check_inputs(run)
    # The signal handlers outlive the checkpoints: closing waits for the last save, which a signal must not cut short.
    with (
        only_trainer(run.workdir) as check,
        stop_requested() as should_stop,
        run.files.mirrored(check=check, fetch=distributed.is_main()),
        session(run.files.local if distributed.is_main() else None, startup.tally) as ledger,
        contextlib.closing(open_checkpoints(run)) as checkpoints,
    ):
        _open_folder(run, config, checkpoints)
        trainer = Trainer(run, checkpoints, config)
        say(trainer.describe())
        saved = checkpoints.steps()
        ledger.begin(saved[-1] if saved else 0, distributed.process_count(), jax.devices())
        startup.ends("open")
        # Under LoRA a resumed run needs the base as well: checkpoints hold the adapters alone.
        fresh = run.decoder.lora.rank > 0 or not checkpoints.steps()
        params = run.load_params() if fresh else None
        startup.ends("weights")
        if run.settings.objective.uses_reference and not ensure_reference(run, params, should_stop):
            return Outcome(checkpoints.steps()[-1] if checkpoints.steps() else 0, False)
        startup.ends("reference")
        state = trainer.start(params)
        startup.ends("state")
        return trainer.run_to_end(state, should_stop, startup, ledger)


def _open_folder(run: Run, config: dict[str, Any], checkpoints: Checkpoints) -> None:
    """Refuses a folder that holds another run, and writes config.json."""
    saved = checkpoints.steps()
    if saved:
        check_same_run(str(run.workdir), checkpoints.about(saved[-1]), config, run.fingerprint)
    best, metrics = parse_best(run.settings.train.keep_best), run.files.local / "metrics.jsonl"
    if best is not None:
        scores = best.scores(read_metrics(metrics)) if distributed.is_main() and metrics.exists() else {}
        checkpoints.scored(dict(distributed.from_main("scores", list(scores.items()))))
    if distributed.is_main():
        replace_text(run.workdir / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")


def open_checkpoints(run: Run) -> Checkpoints:
    """Opens the run's checkpoints for writing."""
    settings = run.settings.train
    best = parse_best(settings.keep_best)
    return Checkpoints(str(run.workdir / "checkpoints"), keep=settings.keep_checkpoints, writing=True, best=best)


@contextlib.contextmanager
def only_trainer(workdir: epath.Path) -> Iterator[Callable[[], None]]:
    """Makes the folder and keeps a second training run out of it; yields a function that raises if the lock is lost.

    Process 0 holds the lock for all hosts.

    Raises:
        UserError: another run has it, or a host does not see the folder, or it cannot be written to.
    """
    if not distributed.is_main():
        alike.check_shared(workdir)
        yield lambda: None
        return
    with locked(workdir) as check:
        alike.check_shared(workdir)
        yield check


def plan_of(run: Run) -> Plan:
    """Returns the plan of all updates of a run.

    Raises:
        UserError: too few pairs for an update, or a setting that has no effect on so many.
    """
    settings = run.settings
    plan = training_plan(
        run.costs(run.train_split),
        settings.rows,
        global_batch=settings.train.global_batch,
        epochs=settings.train.epochs,
        steps=settings.train.steps,
        seed=settings.seed,
        multiple=run.placement.parts("token_share"),
    )
    settings.profile.check(plan.steps)
    settings.log.check()
    if settings.train.accumulate_dtype != "float32" and plan.microbatches == 1:
        raise UserError(
            f"train.accumulate_dtype = {settings.train.accumulate_dtype} has no effect: every update is one "
            "microbatch; leave it float32, or lower rows.rows_per_microbatch"
        )
    return plan


class Trainer:
    """The compiled steps and plans of one run."""

    def __init__(self, run: Run, checkpoints: Checkpoints, config: dict[str, Any]):
        settings = run.settings
        self.run, self.checkpoints, self.config = run, checkpoints, config
        self.best = parse_best(settings.train.keep_best)
        self.plan = plan_of(run)
        schedule = make_schedule(settings.optimizer, self.plan.steps)
        self.optimizer = make_optimizer(settings.optimizer, schedule)
        self.shardings = state_shardings(run.decoder, self.optimizer, settings.model.param_dtype, run.placement)
        accumulate_dtype = settings.train.accumulate_dtype
        step = make_train_step(
            run.decoder, settings.objective, self.optimizer, schedule, accumulate_dtype=accumulate_dtype
        )
        self._jitted = jitted(step, self.shardings)
        self._programs: dict[tuple[int, ...], Any] = {}
        self.work = work_of(run.decoder.config)

    def start(self, params: Params | None) -> TrainState:
        """Returns the newest checkpoint's state, or the state of a new run."""
        saved = self.checkpoints.steps()
        if not saved:
            assert params is not None
            start = jax.jit(lambda p: init_state(self.optimizer, p), out_shardings=self.shardings, donate_argnums=0)
            return start(params)
        shapes = abstract_state(self.run.decoder, self.optimizer, self.run.settings.model.param_dtype)
        say(f"resuming from step {saved[-1]} of {self.plan.steps}")
        return self.checkpoints.restore(saved[-1], shapes, self.shardings, parted(params)[1] if params else {})

    def compile(self, state: TrainState) -> None:
        """Compiles the step for every length of rows, so that no update waits for it later."""
        for caps in self.plan.shapes:
            leading = self.plan.microbatches, self.plan.rows_per_microbatch
            batch = abstract_batch(caps, leading, self.run.placement)
            self._programs[batch.tokens_RT.shape] = self._jitted.lower(state, batch).compile()

    def step(self, state: TrainState, batch: RowBatch) -> tuple[TrainState, Metrics]:
        """Hands an update to the devices, which take the memory of the old state; see `compile`."""
        return self._programs[batch.tokens_RT.shape](state, batch)

    def describe(self) -> str:
        """Returns one line for a person: data, rows, model and devices."""
        run, plan = self.run, self.plan
        held_out = len(run.eval_split) if run.eval_split else 0
        processes = distributed.process_count()
        hosts = f" of {processes} processes" if processes > 1 else ""
        return (
            f"{plan.pairs} training and {held_out} held-out pairs; {plan.steps} updates of {plan.pairs_per_step} pairs "
            f"in at most {plan.microbatches} x {plan.rows_per_microbatch} rows of {plan.lengths} tokens and at most "
            f"{plan.caps.targets} targets; {run.decoder.config.model_type} of "
            f"{run.parameters() / 1e6:.1f}M parameters; mesh {dict(run.placement.mesh.shape)}{hosts}"
        )

    def run_to_end(
        self, state: TrainState, should_stop: Callable[[], bool], startup: Startup, ledger: Ledger
    ) -> Outcome:
        first, steps = int(state.step), self.plan.steps
        source = step_source(self.run, "train", self.plan)
        # A run that died before its first checkpoint starts anew, its first evaluation included.
        log = open_log(self.run.settings.log, self.run.files.local, self.config, resume_step=first or -1)
        stop = Stop(should_stop, "update")
        with contextlib.closing(log), progress("training", steps, "steps", start=first) as advance:
            lacks = self._evaluates(first) and not distributed.from_main("evaluated", log.has(first, "eval"))
            if lacks and not self._evaluate(state, first, log, should_stop):
                return Outcome(first, False)
            startup.ends("evaluation")
            clock = Clock(startup.tally)
            watch = Watch(clock, ledger, log)
            flight: Flight[Update] = Flight(lambda update: self._read(update, watch, log, advance))
            batches = iterate(source, self.run.settings.data.pipeline, range(first, steps))

            def is_due(done: int) -> bool:
                return stop.at(done) or done == first + 1 or self._saves(done) or self._evaluates(done)

            for done, updated in self._updates(state, clock.fetched(batches, flight), flight, is_due, startup):
                clock.restart("other")
                if done == first + 1:
                    about = {"input_rows_per_second": self._input_rate(source), "planned_updates": steps}
                    log.write(first, "start", startup.seconds() | about)
                stopping = stop.at(done) and done < steps
                # Saved before it is evaluated: an evaluation may be longer than the time that SIGTERM leaves.
                if saves := stopping or self._saves(done):
                    self._save(updated, done, ledger, clock)
                if self._evaluates(done) and not stopping:
                    stopping = not self._evaluate(updated, done, log, should_stop)
                    clock.restart("evaluation")
                if stopping:
                    if not saves:
                        self._save(updated, done, ledger, clock)
                    return Outcome(done, False)
                watch.tell(done)
                clock.restart("other")
        return Outcome(steps, True)

    def _updates(
        self,
        state: TrainState,
        batches: Iterator[RowBatch],
        flight: Flight,
        is_due: Callable[[int], bool],
        startup: Startup,
    ) -> Iterator[tuple[int, TrainState]]:
        """Makes an update a batch; yields (number, state) where something `is_due`, after everything was checked."""
        first = int(state.step) + 1
        profiler = Profiler(self.run.settings.profile.updates, epath.Path(self.run.files.local) / "profile")
        with contextlib.closing(profiler):
            for done, batch in enumerate(batches, start=first):
                if profiler.begins_at(done):
                    flight.land()
                    profiler.begin()
                placed = self.run.place(batch)
                if done == first:
                    self.compile(state)
                    startup.ends("compile")
                state, metrics = self._update(state, placed, done)
                flight.put(Update(done, metrics, self.work(batch, placed)))
                ends = profiler.ends_at(done)
                if not (is_due(done) or ends):
                    continue
                flight.land()
                if ends:
                    profiler.close()
                if done == first:
                    startup.ends("update")
                    say(str(startup))
                yield done, state

    def _saves(self, done: int) -> bool:
        return done == self.plan.steps or _due(done, self.run.settings.train.checkpoint_every)

    def _evaluates(self, done: int) -> bool:
        every = self.run.settings.train.eval_every
        return _due(done, every) or (every > 0 and done == self.plan.steps)

    @functools.cached_property
    def _held_out(self) -> HeldOut | None:
        split = self.run.eval_split
        return None if split is None else HeldOut(self.run, split)

    def _update(self, state: TrainState, batch: RowBatch, done: int) -> tuple[TrainState, Metrics]:
        """Hands update `done` to the devices; nothing waits for it here."""
        with jax.profiler.StepTraceAnnotation("update", step_num=done):
            return self.step(state, batch)

    def _read(self, update: Update, watch: Watch, log: Log, advance: Advance) -> None:
        """Waits for an update, checks and logs it."""
        with watch.clock.waits_for_devices():
            values = {name: float(value) for name, value in jax.device_get(update.metrics).items()}
        bad = first_bad(values)
        if bad:
            raise UserError(self._nan_report(bad, values[bad], update.number))
        seconds, waited = watch.lap(update.number)
        speed = update.work.throughput(seconds, self.run.decoder.config, self.run.decoder.lora)
        inputs = {"step_s": seconds, "input_wait_s": waited, "input_wait_fraction": waited / seconds}
        log.write(update.number, "train", values | speed | inputs)
        advance(1, _note(values))

    def _input_rate(self, source: StepSource) -> float:
        """Rows a second that the pipeline lays out, from the time of one batch in one thread.

        Threads share one interpreter, so that a second one adds little; worker processes multiply it.
        """
        began = time.monotonic()
        rows = Work(source[0]).rows
        return rows / (time.monotonic() - began) * max(1, self.run.settings.data.pipeline.workers)

    def _nan_report(self, name: str, value: float, done: int) -> str:
        self.checkpoints.wait()
        saved = self.checkpoints.steps()
        good = f"{self.checkpoints.folder / str(saved[-1])}" if saved else "none yet"
        pairs = ", ".join(self.run.train_split[int(i)].pair_id for i in self.plan.records(done - 1))
        return (
            f"update {done}: {name} is {value}; nothing was saved after it. Last good checkpoint: {good}. "
            f"Look at the pairs of that batch (`iterpref show`): {pairs}. A lower optimizer.learning_rate or "
            "optimizer.clip_norm = 1.0 often helps; damaged weights or records would be named at loading"
        )

    def _save(self, state: TrainState, done: int, ledger: Ledger, clock: Clock) -> None:
        ledger.cut()
        self.run.files.commit()
        self.checkpoints.save(done, state, self._about(done))
        clock.restart("checkpoint")

    def _evaluate(self, state: TrainState, done: int, log: Log, should_stop: Callable[[], bool]) -> bool:
        """Evaluates and logs; returns False if it was asked to stop before the end: a resumed run evaluates anew."""
        if self._held_out is None:
            return True
        total = self._held_out.evaluate(state.all_params, Stop(should_stop, f"evaluation {done}"))
        if total is None:
            return False
        bad = first_bad(total)
        if bad:
            raise UserError(
                f"held-out evaluation after update {done}: {bad} is {total[bad]}, though the update was finite"
            )
        if self.best is not None:
            self.checkpoints.scored({done: self.best.score(total)})
        log.write(done, "eval", total)
        return True

    def _about(self, done: int) -> dict[str, Any]:
        return {"config": self.config, "data_state": {"step": done}, "fingerprint": self.run.fingerprint}


def _due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0


def _note(values: dict[str, float]) -> str:
    shown = ("loss", "rewards/margins", "rewards/accuracies")
    return "  ".join(f"{name} {values[name]:.4g}" for name in shown if name in values)
