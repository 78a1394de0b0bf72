"""The sandbox's interface, its settings and the choice of a tier."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from iterpref_jax.codeflow.sandbox import bwrap, cases, control, interpreter, landlock, probe, request, rlimit, ruling
from iterpref_jax.codeflow.sandbox.interpreter import Interpreter
from iterpref_jax.codeflow.sandbox.lanes import Lanes
from iterpref_jax.codeflow.sandbox.verdict import Case, Program, Verdict
from iterpref_jax.errors import UserError, did_you_mean
from iterpref_jax.progress import say

# The strongest first; "auto" is the first that holds here.
TIERS = ("bwrap+cgroup", "bwrap", "landlock", "rlimit")
AUTO = "auto"
UNSAFE = (
    "sandbox: tier rlimit is UNSAFE: programs can read and write your files, reach the network and signal your "
    "processes; run only code that you trust"
)
# Of the canaries that find out whether a tier holds.
PROBE_LIMITS: dict[str, Any] = dict(wall_s=10.0, cpu_s=5, memory_mb=256, output_kb=64)
MIN_MEMORY_MB = 64
# Runs of a program whose flakiness is looked for, each with a hash seed of its own.
REPEATS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class SandboxSettings:
    """`wall_s` and `cpu_s` limit one program in seconds (`wall_s` from when its interpreter is ready), `memory_mb` one
    process in MiB, `output_kb` its stdout and stderr together in KiB; `workers` programs run at a time. With `warm`,
    interpreters that have imported `preload` are forked where that isolates as well; `preload` is for them alone.
    `python` is the interpreter that programs run in, by path or name; "" is the one that runs this."""

    tier: str
    allow_unsafe: bool
    wall_s: float
    cpu_s: int
    memory_mb: int
    output_kb: int
    workers: int
    warm: bool
    preload: tuple[str, ...]
    python: str

    def that_matter(self) -> dict[str, Any]:
        """Returns the settings that a verdict may depend on, as JSON values; how many run at a time is none of them."""
        found = dataclasses.asdict(self) | {"preload": list(self.preload)}
        # What was stored before there was a choice was made by the interpreter that is the default.
        without = ("workers", "warm") if self.python else ("workers", "warm", "python")
        return {name: value for name, value in found.items() if name not in without}


class Tier(Protocol):
    """What a tier provides: one run of one program, over and cleaned up when it returns; called from any thread. Once
    `stop` is set, the run ends as a `sandbox_error`."""

    def __call__(self, program: Program, *, hash_seed: int, stop: threading.Event | None = None) -> Verdict: ...


class Sandbox:
    """Judges programs with one tier. Made by `open_sandbox`."""

    def __init__(self, tier: Tier, pool: concurrent.futures.Executor, python: Interpreter):
        self._tier, self._pool, self._python, self._stop = tier, pool, python, threading.Event()

    def stop(self) -> None:
        """Ends all runs, those to come too, as sandbox errors; for who leaves early. Called from any thread."""
        self._stop.set()

    def run(
        self, program: Program, *, check_vacuous: bool = False, check_flaky: bool = False, hash_seed: int = 0
    ) -> Verdict:
        """Judges one program.

        With `check_vacuous`, tests that a stub passes too make the verdict `vacuous`. With `check_flaky`, a program
        that passes runs with two more hash seeds, and is `flaky` if it does not pass with these (`Verdict.by_seed`).
        A `sandbox_error` (our failure) is tried once more and then returned. Raises UserError for a program that its
        style cannot run.
        """
        request.check(program)
        if check_vacuous and program.style == "stdin":
            raise UserError(
                "check_vacuous: a script is compared by what it prints; there is nothing to put in its place"
            )
        verdict = self._judge(program, hash_seed)
        if verdict.passed and check_vacuous and (stub := self._stub_verdict(program, hash_seed)):
            if stub.passed:
                message = "the tests also pass for a program whose functions return None"
                return dataclasses.replace(verdict, status="vacuous", error_type="Vacuous", message=message)
            if stub.status == "sandbox_error":
                # Nobody knows whether the tests are vacuous, so this is no pass that may be kept.
                return stub
        return self._repeated(program, verdict, hash_seed) if verdict.passed and check_flaky else verdict

    def run_all(
        self,
        programs: Sequence[Program],
        on_done: Callable[[int, Verdict], None] | None = None,
        *,
        check_vacuous: bool = False,
        check_flaky: bool = False,
        hash_seed: int = 0,
    ) -> list[Verdict]:
        """Judges programs, several at a time; the verdicts come in the order of the programs.

        `on_done(index, verdict)` is called in this thread, in the order in which the runs end.
        """
        futures = {
            self._pool.submit(
                self.run, program, check_vacuous=check_vacuous, check_flaky=check_flaky, hash_seed=hash_seed
            ): index
            for index, program in enumerate(programs)
        }
        try:
            for future in concurrent.futures.as_completed(futures):
                verdict = future.result()
                if on_done is not None:
                    on_done(futures[future], verdict)
        finally:
            for future in futures:
                future.cancel()
        return [future.result() for future in futures]

    def answered(self, program: Program) -> tuple[Case, ...]:
        """Returns the cases of `program` with its own outputs as the expected ones: it is the reference solution.

        Raises UserError where it does not answer all of them, and where it is refused by `run`.
        """
        try:
            return cases.answered(program, self.run(cases.unanswered(program)))
        except ValueError as error:
            raise UserError(
                f"the reference solution {program.entry_point} has no output for every case: {error}"
            ) from None

    def _judge(self, program: Program, hash_seed: int) -> Verdict:
        verdict = self._tier(program, hash_seed=hash_seed, stop=self._stop)
        if verdict.error_type == ruling.MISSING:
            wanted = "pytest" if self._python != interpreter.own() else "'iterpref_jax[sandbox]'"
            raise UserError(
                f"program style {program.style!r}: {verdict.message}; {self._python.executable} -m pip install {wanted}"
            )
        if verdict.status == "sandbox_error" and not self._stop.is_set():
            verdict = self._tier(program, hash_seed=hash_seed, stop=self._stop)
        return cases.compared(program, verdict)

    def _repeated(self, program: Program, verdict: Verdict, hash_seed: int) -> Verdict:
        found = {hash_seed: verdict.status}
        for seed in range(hash_seed + 1, hash_seed + REPEATS):
            again = self._judge(program, seed)
            if again.status == "sandbox_error":
                return again
            found[seed] = again.status
        by_seed = tuple(found.items())
        if set(found.values()) == {"pass"}:
            return dataclasses.replace(verdict, by_seed=by_seed)
        message = "; ".join(f"hash seed {seed}: {status}" for seed, status in by_seed)
        return dataclasses.replace(verdict, status="flaky", error_type="Flaky", message=message, by_seed=by_seed)

    def _stub_verdict(self, program: Program, hash_seed: int) -> Verdict | None:
        try:
            stub = control.stub_of(program.code)
        except (SyntaxError, ValueError, RecursionError):
            # It ran, so this is our parser's limit; without a stub there is no control.
            return None
        return self._judge(dataclasses.replace(program, code=stub), hash_seed)


@contextlib.contextmanager
def open_sandbox(settings: SandboxSettings) -> Iterator[Sandbox]:
    """Opens the sandbox of `settings.tier` for a `with` block; "auto" takes the strongest that holds here.

    Raises UserError for an unknown tier, for one that does not hold on this machine, for the tier `rlimit`
    without `allow_unsafe`, for limits that no program can run in and for an interpreter that cannot run any.
    """
    check_settings(settings)
    python = interpreter.find(settings.python)
    name = _strongest(python, settings.allow_unsafe) if settings.tier == AUTO else settings.tier
    if name == "rlimit":
        say(UNSAFE)
    elif settings.tier != AUTO and (why := why_not(name, python)):
        raise UserError(f"sandbox.tier: {name!r} does not hold on this machine: {why}")
    limits = {limit: getattr(settings, limit) for limit in PROBE_LIMITS}
    with (
        _lanes(name, python, settings) as lanes,
        concurrent.futures.ThreadPoolExecutor(settings.workers, thread_name_prefix="sandbox") as pool,
    ):
        say(f"sandbox: tier {name}" + (", warm" if lanes else "") + (f", {python}" if settings.python else ""))
        sandbox = Sandbox(make_tier(name, **limits, python=python, lanes=lanes), pool, python)
        try:
            yield sandbox
        finally:
            # Who is interrupted does not wait for programs that run for long.
            sandbox.stop()


@contextlib.contextmanager
def _lanes(name: str, python: Interpreter, settings: SandboxSettings) -> Iterator[Lanes | None]:
    """Opens warm interpreters where they were asked for and isolate; says why where they do not."""
    if not settings.warm:
        yield None
    elif why := why_cold(name, python):
        say(f"sandbox: every program has a new interpreter (sandbox.warm): {why}")
        yield None
    else:
        with bwrap.open_lanes(settings.preload, python) as lanes:
            _check_preload(lanes, python, settings.preload)
            yield lanes


def _check_preload(lanes: Lanes, python: Interpreter, preload: Sequence[str]) -> None:
    try:
        with lanes.lane(0):
            pass
    except OSError as error:
        raise UserError(
            f"sandbox.preload: wanted modules that {python} can import, got {', '.join(preload)}: "
            + str(error).splitlines()[-1]
        ) from error


def make_tier(
    name: str,
    *,
    wall_s: float,
    cpu_s: int,
    memory_mb: int,
    output_kb: int,
    python: Interpreter,
    lanes: Lanes | None = None,
) -> Tier:
    """Returns a tier of `TIERS` with these limits; whether it holds is not tried."""
    limits: dict[str, Any] = dict(wall_s=wall_s, cpu_s=cpu_s, memory_mb=memory_mb, output_kb=output_kb, python=python)
    if name == "rlimit":
        return rlimit.RlimitTier(**limits)
    if name == landlock.NAME:
        return landlock.LandlockTier(**limits)
    return bwrap.BwrapTier(**limits, grouped=name == bwrap.NAME_WITH_CGROUP, lanes=lanes)


def why_not(name: str, python: Interpreter | None = None) -> str:
    """Returns why a strong tier does not hold on this machine, "" if it does: its canaries are run, once a process.

    They run in `python`; None is the interpreter that runs this.
    """
    return _why_not(name, python or interpreter.own())


def why_cold(name: str, python: Interpreter | None = None) -> str:
    """Returns why warm interpreters do not isolate as the tier does, "" if they do: tried in the same way."""
    return _why_cold(name, python or interpreter.own())


@functools.cache
def _why_not(name: str, python: Interpreter) -> str:
    missing = landlock.missing(python) if name == landlock.NAME else bwrap.missing()
    return missing or _first_failure(make_tier(name, **PROBE_LIMITS, python=python))


@functools.cache
def _why_cold(name: str, python: Interpreter) -> str:
    if name not in (bwrap.NAME_WITH_CGROUP, bwrap.NAME):
        return f"the tier {name} makes no namespaces, by which one run is kept from the next"
    if why := bwrap.why_cold(python):
        return why
    with bwrap.open_lanes((), python) as lanes:
        return _first_failure(make_tier(name, **PROBE_LIMITS, python=python, lanes=lanes))


def _first_failure(tier: Tier) -> str:
    return next(probe.failures(lambda program: tier(program, hash_seed=0)), "")


def _strongest(python: Interpreter, allow_unsafe: bool) -> str:
    reasons = []
    for name in TIERS[:-1]:
        why = why_not(name, python)
        if not why:
            return name
        reasons.append(f"{name}: {why}")
    if allow_unsafe:
        return TIERS[-1]
    raise UserError(
        f"sandbox.tier: none that isolates programs holds on this machine ({'; '.join(reasons)}); mend that, or set "
        "sandbox.allow_unsafe=True if you trust the code that it will run"
    )


def check_settings(settings: SandboxSettings) -> None:
    """Raises UserError for the first setting that cannot work."""
    if settings.tier not in (AUTO, *TIERS):
        raise UserError(
            f"sandbox.tier: {settings.tier!r} is not a tier{did_you_mean(settings.tier, TIERS)}; known: "
            + ", ".join((AUTO, *TIERS))
        )
    if settings.tier == "rlimit" and not settings.allow_unsafe:
        raise UserError(
            "sandbox.tier: 'rlimit' does not protect files, network or other processes; set sandbox.allow_unsafe=True "
            "if you trust the code that it will run"
        )
    if settings.preload and not settings.warm:
        raise UserError(
            f"sandbox.preload: {', '.join(settings.preload)} is imported into warm interpreters only, and sandbox.warm "
            "is False; set sandbox.preload=() or sandbox.warm=True"
        )
    for name in ("wall_s", "cpu_s", "memory_mb", "output_kb", "workers"):
        value, least = getattr(settings, name), MIN_MEMORY_MB if name == "memory_mb" else 0
        if not (math.isfinite(value) and value > least):
            raise UserError(f"sandbox.{name}: wanted a finite number above {least}, got {value!r}")
