"""From a task to what a model is shown, in the styles that published scores were made with.

`base`: code to continue. `evalplus-vllm`: a chat whose answer is begun with an opened fence. `evalplus-openai`: a chat
with nothing begun. `chat`: the benchmark's own messages. `raw`: the last of those as plain text, for a model that was
trained with `build.text.template = raw`.
"""

from __future__ import annotations

import dataclasses

from iterpref_jax.errors import UserError, did_you_mean
from iterpref_jax.evaluate.stops import BASE, FENCE
from iterpref_jax.evaluate.tasks import Benchmark, Task

STYLES = ("base", "evalplus-vllm", "evalplus-openai", "chat", "raw")
# EvalPlus 0.3.1 and BigCodeBench 0.2.5, both `codegen`.
INSTRUCTION = (
    "Please provide a self-contained Python script that solves the following problem in a markdown code block:"
)
RESPONSE = (
    "Below is a Python script with a self-contained function that solves the problem and passes corresponding tests:"
)
CHAT = ("evalplus-vllm", "evalplus-openai", "chat")
RAW_END = "\n"
NEEDS = {
    "base": "code",
    "raw": "messages",
    "chat": "messages",
    "evalplus-vllm": "request",
    "evalplus-openai": "request",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shown:
    """A prompt: plain `text`, or `messages` (role, content), whose answer is begun with `prefill` if that is not empty.

    `stops` end the answer.
    """

    text: str
    messages: tuple[tuple[str, str], ...]
    prefill: str
    stops: tuple[str, ...]


def check_known(style: str) -> None:
    """Raises UserError for a style that is not in `STYLES`."""
    if style not in STYLES:
        raise UserError(
            f"evaluate.prompt_style: {style!r} is not known{did_you_mean(style, STYLES)}; known: {', '.join(STYLES)}"
        )


def fitting(benchmark: Benchmark) -> list[str]:
    """Returns the styles that the benchmark has prompts for."""
    return [name for name in STYLES if getattr(benchmark.tasks[0].prompts, NEEDS[name])]


def check_style(style: str, benchmark: Benchmark) -> None:
    """Raises UserError for a style that this benchmark has no prompt for."""
    if style not in fitting(benchmark):
        more = "; a base model needs evaluate.shots" if benchmark.name == "livecodebench" and style == "base" else ""
        raise UserError(
            f"{benchmark.name} has no prompt in the style {style!r}; it has {', '.join(fitting(benchmark))}{more}"
        )


def shown(style: str, benchmark: Benchmark, task: Task) -> Shown:
    """Returns what the model sees of a task."""
    prompts = task.prompts
    if style == "base":
        return Shown(text=base_text(task), messages=(), prefill="", stops=benchmark.stops)
    if style == "raw":
        return Shown(text=prompts.messages[-1][1].strip() + RAW_END, messages=(), prefill="", stops=())
    if style == "chat":
        return Shown(text="", messages=prompts.messages, prefill="", stops=())
    request = prompts.request.strip()
    if style == "evalplus-openai":
        asked = f"{INSTRUCTION}\n```python\n{request}\n```" if prompts.fenced else f"{INSTRUCTION}\n{request}"
        return Shown(text="", messages=(("user", asked),), prefill="", stops=())
    asked = f"{INSTRUCTION}\n```\n{request}\n```\n" if prompts.fenced else f"{INSTRUCTION}\n{request}\n"
    prefill = f"{RESPONSE}\n```python\n"
    return Shown(text="", messages=(("user", asked),), prefill=prefill, stops=BASE + FENCE)


def base_text(task: Task) -> str:
    """Returns the code that a base model continues."""
    # The question of a contest ends with an empty line, where its answer begins.
    return task.prompts.code if task.prompts.messages else task.prompts.code.strip() + "\n"
