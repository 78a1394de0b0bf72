"""The sandbox's interface, its settings and the choice of a tier."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from iterpref_jax.codeflow.sandbox import bwrap, control, probe, rlimit
from iterpref_jax.codeflow.sandbox.verdict import STYLES, Program, Verdict
from iterpref_jax.errors import UserError, did_you_mean
from iterpref_jax.progress import say

# The strongest first; "auto" is the first that holds here.
TIERS = ("bwrap+cgroup", "bwrap", "landlock", "rlimit")
BUILT = ("bwrap+cgroup", "bwrap", "rlimit")
AUTO = "auto"
# Of the canaries that find out whether a tier holds.
PROBE_LIMITS: dict[str, Any] = dict(wall_s=10.0, cpu_s=5, memory_mb=256, output_kb=64)
MIN_MEMORY_MB = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class SandboxSettings:
    """`wall_s` and `cpu_s` limit one program in seconds, `memory_mb` one process in MiB, `output_kb` its stdout and
    stderr together in KiB; `workers` programs run at a time."""

    tier: str
    allow_unsafe: bool
    wall_s: float
    cpu_s: int
    memory_mb: int
    output_kb: int
    workers: int


class Tier(Protocol):
    """What a tier provides: one run of one program, over and cleaned up when it returns; called from any thread."""

    def __call__(self, program: Program, *, hash_seed: int) -> Verdict: ...


class Sandbox:
    """Judges programs with one tier. Made by `open_sandbox`."""

    def __init__(self, tier: Tier, pool: concurrent.futures.Executor):
        self._tier, self._pool = tier, pool

    def run(self, program: Program, *, check_vacuous: bool = False, hash_seed: int = 0) -> Verdict:
        """Judges one program.

        With `check_vacuous`, tests that a stub passes too make the verdict `vacuous`. A `sandbox_error` (our failure)
        is tried once more and then returned. Raises UserError for a style that is not known.
        """
        if program.style not in STYLES:
            raise UserError(
                f"program style {program.style!r} is not built; known: {', '.join(STYLES)}"
                + did_you_mean(program.style, STYLES)
            )
        verdict = self._tier(program, hash_seed=hash_seed)
        if verdict.status == "sandbox_error":
            verdict = self._tier(program, hash_seed=hash_seed)
        if verdict.passed and check_vacuous and self._stub_passes(program, hash_seed):
            message = "the tests also pass for a program whose functions return None"
            return dataclasses.replace(verdict, status="vacuous", error_type="Vacuous", message=message)
        return verdict

    def run_all(
        self,
        programs: Sequence[Program],
        on_done: Callable[[int, Verdict], None] | None = None,
        *,
        check_vacuous: bool = False,
        hash_seed: int = 0,
    ) -> list[Verdict]:
        """Judges programs, several at a time; the verdicts come in the order of the programs.

        `on_done(index, verdict)` is called in this thread, in the order in which the runs end.
        """
        futures = {
            self._pool.submit(self.run, program, check_vacuous=check_vacuous, hash_seed=hash_seed): index
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

    def _stub_passes(self, program: Program, hash_seed: int) -> bool:
        try:
            stub = control.stub_of(program.code)
        except (SyntaxError, ValueError, RecursionError):
            # It ran, so this is our parser's limit; without a stub there is no control.
            return False
        return self._tier(dataclasses.replace(program, code=stub), hash_seed=hash_seed).passed


@contextlib.contextmanager
def open_sandbox(settings: SandboxSettings) -> Iterator[Sandbox]:
    """Opens the sandbox of `settings.tier` for a `with` block; "auto" takes the strongest that holds here.

    Raises UserError for an unknown or unbuilt tier, for one that does not hold on this machine, for the tier `rlimit`
    without `allow_unsafe` and for limits that no program can run in.
    """
    check_settings(settings)
    name = _strongest(settings.allow_unsafe) if settings.tier == AUTO else settings.tier
    if name == "rlimit":
        say(
            "sandbox: tier rlimit is UNSAFE: programs can read and write your files, reach the network and signal your "
            "processes; run only code that you trust"
        )
    elif settings.tier != AUTO and (why := why_not(name)):
        raise UserError(f"sandbox.tier: {name!r} does not hold on this machine: {why}")
    limits = {limit: getattr(settings, limit) for limit in PROBE_LIMITS}
    tier = make_tier(name, **limits)
    say(f"sandbox: tier {name}")
    with concurrent.futures.ThreadPoolExecutor(settings.workers, thread_name_prefix="sandbox") as pool:
        yield Sandbox(tier, pool)


def make_tier(name: str, *, wall_s: float, cpu_s: int, memory_mb: int, output_kb: int) -> Tier:
    """Returns a tier of `BUILT` with these limits; whether it holds is not tried."""
    limits: dict[str, Any] = dict(wall_s=wall_s, cpu_s=cpu_s, memory_mb=memory_mb, output_kb=output_kb)
    if name == "rlimit":
        return rlimit.RlimitTier(**limits)
    return bwrap.BwrapTier(**limits, grouped=name == bwrap.NAME_WITH_CGROUP)


@functools.cache
def why_not(name: str) -> str:
    """Returns why a strong tier does not hold on this machine, "" if it does: its canaries are run, once a process."""
    if missing := bwrap.missing():
        return missing
    tier = make_tier(name, **PROBE_LIMITS)
    return next(probe.failures(lambda program: tier(program, hash_seed=0)), "")


def _strongest(allow_unsafe: bool) -> str:
    reasons = []
    for name in BUILT[:-1]:
        why = why_not(name)
        if not why:
            return name
        reasons.append(f"{name}: {why}")
    if allow_unsafe:
        return BUILT[-1]
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
    if settings.tier not in (AUTO, *BUILT):
        raise UserError(f"sandbox.tier: not built yet: {settings.tier!r}; built: {', '.join(BUILT)}")
    if settings.tier == "rlimit" and not settings.allow_unsafe:
        raise UserError(
            "sandbox.tier: 'rlimit' does not protect files, network or other processes; set sandbox.allow_unsafe=True "
            "if you trust the code that it will run"
        )
    for name in ("wall_s", "cpu_s", "memory_mb", "output_kb", "workers"):
        value, least = getattr(settings, name), MIN_MEMORY_MB if name == "memory_mb" else 0
        if not (math.isfinite(value) and value > least):
            raise UserError(f"sandbox.{name}: wanted a finite number above {least}, got {value!r}")
