"""One run: answers of a model to a benchmark, their verdicts, and what they come to; each stored as it comes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Container, Iterable, Sequence
from pathlib import Path
from typing import Any

from iterpref_jax.atomic import replacing
from iterpref_jax.codeflow.sandbox import Sandbox, SandboxSettings
from iterpref_jax.errors import UserError
from iterpref_jax.evaluate import cleaning, judging, prompts, samples
from iterpref_jax.evaluate.generators import Generator, Sampling, Wanted
from iterpref_jax.evaluate.judging import Judged, Outcome
from iterpref_jax.evaluate.samples import Appender, Sample, Verdict
from iterpref_jax.evaluate.tasks import Benchmark, Task
from iterpref_jax.progress import progress

# Changes when the same text may become another program, or the same program another verdict.
SCORING_VERSION = 3
# Settings of the sandbox that are no limits.
_TOLD_APART = ("tier", "allow_unsafe", "python")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """What is asked and how it is scored; `n` answers a task, of which `pass_at` (the k that n reaches) is told.

    `max_new_tokens` 0 is the benchmark's own. With `reference_must_pass`, tasks whose published solution does not pass
    here are left out of the scores. `draws` of tasks make the bootstrap's intervals.
    """

    prompt_style: str
    compat: str
    n: int
    temperature: float
    top_p: float
    max_new_tokens: int
    seed: int
    split: str
    since: str
    until: str
    limit: int
    shots: str
    reference_must_pass: bool
    pass_at: tuple[int, ...]
    draws: int

    def __post_init__(self):
        judging.check_compat(self.compat)
        prompts.check_known(self.prompt_style)
        for name, least in {"n": 1, "max_new_tokens": 0, "limit": 0, "draws": 1}.items():
            if getattr(self, name) < least:
                raise UserError(f"evaluate.{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"evaluate.seed must be at least 0 and below 2**63, got {self.seed}")
        if not self.pass_at or min(self.pass_at) < 1:
            raise UserError(f"evaluate.pass_at: wanted numbers from 1 on, got {self.pass_at}")
        if min(self.pass_at) > self.n:
            raise UserError(f"evaluate.pass_at = {self.pass_at}: pass@k needs k answers a task, evaluate.n is {self.n}")
        if self.n > 1 and self.temperature == 0:
            raise UserError(
                f"evaluate.n = {self.n} at temperature 0 would be {self.n} equal answers; raise evaluate.temperature"
            )

    def choice(self) -> dict[str, Any]:
        """The fields that say which tasks and prompts of a benchmark are taken."""
        return {name: getattr(self, name) for name in ("split", "since", "until", "limit", "shots")}

    def sampling(self, benchmark: Benchmark) -> Sampling:
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            max_new_tokens=self.max_new_tokens or benchmark.max_new_tokens,
            seed=self.seed,
        )


def made_with(
    settings: EvaluateSettings, benchmark: Benchmark, origin: str, limits: SandboxSettings, python: str = ""
) -> dict[str, Any]:
    """Returns what is stored beside a run's files: what decides its samples, and what decides its scores.

    `limits` are those of every program; `python` names the interpreter that they run in, "" the one that runs this.
    """
    sampling = dataclasses.asdict(settings.sampling(benchmark))
    asked = {"benchmark": benchmark.name, "prompt_style": settings.prompt_style, "n": settings.n, **settings.choice()}
    return {
        "samples": {"model": origin, **asked, **sampling},
        "scores": {
            "sha256": benchmark.sha256,
            "compat": settings.compat,
            "scoring": SCORING_VERSION,
            "python": python,
            "limits": _limits(limits),
            "reference_must_pass": settings.reference_must_pass,
        },
    }


def _limits(sandbox: SandboxSettings) -> str:
    # The tier follows from the machine, and the interpreter is told with its version.
    matter = {name: value for name, value in sandbox.that_matter().items() if name not in _TOLD_APART}
    matter["preload"] = " ".join(matter["preload"])
    return ", ".join(f"{name} {value}" for name, value in matter.items() if value != "")


def generate(
    settings: EvaluateSettings,
    benchmark: Benchmark,
    opened: Callable[[], Generator],
    folder: Path,
    should_stop: Callable[[], bool],
) -> bool:
    """Stores the answers that are not stored yet; returns False if it was asked to stop before the end.

    The model is opened by `opened()` if an answer is missing, not before.
    """
    prompts.check_style(settings.prompt_style, benchmark)
    missing = _missing(settings, benchmark, samples.read_samples(folder))
    if not missing:
        return True
    generator, total = opened(), len(benchmark.tasks) * settings.n
    with (
        Appender(folder / samples.SAMPLES) as file,
        progress("answers", total, "answers", start=total - len(missing)) as advance,
    ):
        answers = generator.generate(missing, settings.sampling(benchmark))
        for ended, (index, written) in enumerate(answers, start=1):
            each = missing[index]
            name, reason = benchmark.tasks[each.task].task_id, written.finish_reason
            file.add(Sample(task_id=name, sample=each.sample, text=written.text, form="answer", finish_reason=reason))
            advance(1)
            if should_stop():
                return ended == len(missing)
    return True


def _missing(settings: EvaluateSettings, benchmark: Benchmark, stored: Container[tuple[str, int]]) -> list[Wanted]:
    return [
        Wanted(shown=shown, task_id=task.task_id, task=index, sample=sample)
        for index, task in enumerate(benchmark.tasks)
        for shown in (prompts.shown(settings.prompt_style, benchmark, task),)
        for sample in range(settings.n)
        if (task.task_id, sample) not in stored
    ]


def read_stored(settings: EvaluateSettings, benchmark: Benchmark, path: str) -> list[Sample]:
    """Returns the samples of a file.

    Raises:
        UserError: a sample of a task that the benchmark does not have, or a task without one; answers to prompts of
            another style, which would become other programs.
    """
    found, known = list(samples.import_samples(path)), {task.task_id for task in benchmark.tasks}
    unknown = next((sample.task_id for sample in found if sample.task_id not in known), None)
    if unknown is not None:
        raise UserError(f"{path}: the task {unknown!r} is not in {benchmark.source}; is it of another benchmark?")
    lacking = sorted(known - {sample.task_id for sample in found})
    if lacking:
        raise UserError(f"{path} has no sample of {len(lacking)} tasks, the first {lacking[0]}; each counts in a score")
    style = samples.style_of(path)
    if style not in (None, settings.prompt_style) and any(sample.form == "answer" for sample in found):
        raise UserError(
            f"{path} holds answers to prompts of the style {style!r}, by which they become programs, not of "
            f"{settings.prompt_style!r}: give --prompt-style={style}"
        )
    return found


def canonical(benchmark: Benchmark) -> list[Sample]:
    """Returns the published solutions as samples; raises UserError for a task that has none."""
    lacking = [task.task_id for task in benchmark.tasks if not task.canonical]
    if lacking:
        raise UserError(f"{benchmark.source}: {len(lacking)} tasks have no published solution, the first {lacking[0]}")
    return [
        Sample(task_id=task.task_id, sample=0, text=task.canonical, form="solution", finish_reason="stored")
        for task in benchmark.tasks
    ]


def judge(
    settings: EvaluateSettings,
    benchmark: Benchmark,
    sandbox: Sandbox,
    folder: Path,
    should_stop: Callable[[], bool],
) -> bool:
    """Stores the verdicts that are not stored yet; returns False if it was asked to stop before the end.

    Raises:
        UserError: the sandbox could not run some programs, which says nothing about them: they have no verdict yet.
    """
    stored = samples.read_samples(folder).values()
    return _judge(settings, benchmark, stored, sandbox, folder / samples.VERDICTS, should_stop)


def judge_references(
    settings: EvaluateSettings,
    benchmark: Benchmark,
    sandbox: Sandbox,
    folder: Path,
    should_stop: Callable[[], bool],
) -> bool:
    """As `judge`, for the published solutions, if they must pass."""
    if not settings.reference_must_pass:
        return True
    return _judge(settings, benchmark, canonical(benchmark), sandbox, folder / samples.REFERENCES, should_stop)


def counted(settings: EvaluateSettings, benchmark: Benchmark, folder: Path) -> tuple[Benchmark, dict[str, Outcome]]:
    """Returns the tasks that count, and how the published solutions of the others fail, if they must pass.

    Raises:
        UserError: none passes.
    """
    if not settings.reference_must_pass:
        return benchmark, {}
    found = samples.read_verdicts(folder / samples.REFERENCES)
    failed = {
        task.task_id: outcome
        for task in benchmark.tasks
        if (outcome := found[task.task_id, 0].judged.failed) is not None
    }
    tasks = tuple(task for task in benchmark.tasks if task.task_id not in failed)
    if not tasks:
        name, outcome = next(iter(failed.items()))
        raise UserError(
            f"evaluate.reference_must_pass: no published solution passes here ({name}: {outcome.error_type}: "
            f"{outcome.message}); set sandbox.python to the Python of an environment with the benchmark's libraries"
        )
    return dataclasses.replace(benchmark, tasks=tasks), failed


def _judge(
    settings: EvaluateSettings,
    benchmark: Benchmark,
    stored: Iterable[Sample],
    sandbox: Sandbox,
    path: Path,
    should_stop: Callable[[], bool],
) -> bool:
    done, tasks = samples.read_verdicts(path), {task.task_id: task for task in benchmark.tasks}
    wanted = [sample for sample in stored if sample.task_id in tasks]
    missing = [sample for sample in wanted if sample.key not in done]
    solutions: list[str] = []
    for sample in missing:
        # Of long answers that are not programs this takes a while.
        if should_stop():
            return False
        solutions.append(solution_of(settings, benchmark, tasks[sample.task_id], sample))
    programs = [_prefixed(tasks[each.task_id], code) for each, code in zip(missing, solutions, strict=True)]
    failed: list[str] = []
    with (
        Appender(path) as file,
        progress(path.stem, len(wanted), "programs", start=len(wanted) - len(missing)) as advance,
    ):

        def on_done(index: int, judged: Judged) -> None:
            ours = [outcome.message for outcome in judged.outcomes if outcome.status == "sandbox_error"]
            failed.extend(ours)
            if not ours:
                file.add(Verdict.of(missing[index], solutions[index], judged))
            advance(1)
            if should_stop():
                raise _Stopped

        try:
            judging.judge_all(sandbox, programs, settings.compat, on_done)
        except _Stopped:
            return False
    if failed:
        raise UserError(f"the sandbox could not run {len(failed)} programs ({failed[0]}); run the same command again")
    return True


def solution_of(settings: EvaluateSettings, benchmark: Benchmark, task: Task, sample: Sample) -> str:
    """Returns the program that a sample stands for."""
    if sample.form == "answer":
        return cleaning.program(benchmark, task, settings.prompt_style, sample.text)
    return cleaning.completed(task, sample.text) if sample.form == "completion" else sample.text


def verdicts_by_task(benchmark: Benchmark, verdicts: Iterable[Verdict]) -> dict[str, list[Verdict]]:
    """Returns the verdicts of every task, in the order of its samples."""
    found: dict[str, list[Verdict]] = {task.task_id: [] for task in benchmark.tasks}
    for verdict in sorted(verdicts, key=lambda verdict: verdict.sample):
        if verdict.task_id in found:
            found[verdict.task_id].append(verdict)
    return found


def store(found: Sequence[Sample], folder: Path) -> None:
    """Writes the samples of a run that asks no model."""
    with replacing(folder / samples.SAMPLES) as partial, Appender(Path(partial)) as file:
        for sample in found:
            file.add(sample)


class _Stopped(Exception):
    """Leaves a batch of the sandbox's runs: what waits is dropped."""


def _prefixed(task: Task, solution: str) -> tuple[Task, str]:
    return task, task.prefix + solution
