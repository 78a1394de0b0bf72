"""`report.html`: one page that needs no network; scores, errors, and every task with its program and failing test.

The template escapes everything but what pygments made of a program (it escapes as well); the page forbids itself every
script but its own.
"""

from __future__ import annotations

import base64
import hashlib
import html
import importlib.util
import re
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from iterpref_jax.evaluate import comparison, score_text
from iterpref_jax.evaluate.comparison import Comparison
from iterpref_jax.evaluate.prompts import fitting, shown
from iterpref_jax.evaluate.samples import VERDICTS, Verdict, read_verdicts
from iterpref_jax.evaluate.tasks import Benchmark, Task

# Of one task, so that a page of 200 samples a task still opens.
SAMPLES_SHOWN = 4
THEMES = {"light": "friendly", "dark": "github-dark"}


def render(found: dict[str, Any], by_task: dict[str, list[Verdict]], benchmark: Benchmark) -> str:
    """Returns the page of one run."""
    asked, styles = found["made_with"]["samples"]["prompt_style"], fitting(benchmark)
    # Samples of a file were made with a prompt that is not known here.
    style = asked if asked in styles else styles[0]
    tasks = [
        {
            "name": task.task_id,
            "prompt": prompt_text(style, benchmark, task),
            "is_code": style == "base",
            "samples": by_task[task.task_id][:SAMPLES_SHOWN],
            "count": len(by_task[task.task_id]),
            "passed": sum(verdict.judged.failed is None for verdict in by_task[task.task_id]),
            "classes": sorted(set().union(*map(_classes, by_task[task.task_id]))),
        }
        for task in benchmark.tasks
    ]
    return page("eval_page.html.j2", found=found, tasks=tasks, highlighted=highlighted)


def comparison_page(found: Comparison) -> str:
    """Returns the page of several runs: the programs of the tasks in which they differ, the first sample of each."""
    verdicts = [read_verdicts(Path(run) / VERDICTS) for run in found.runs]
    tasks = [
        {"name": name, "scores": values, "verdicts": [of_run[name, 0] for of_run in verdicts if (name, 0) in of_run]}
        for name, values in found.passed.items()
    ]
    return page(
        "comparison.html.j2", found=found, tasks=tasks, highlighted=highlighted, explanation=comparison.EXPLANATION
    )


def page(template: str, **values: Any) -> str:
    """Returns a rendered page with the hash of its script in its own content policy."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("iterpref_jax.evaluate", "pages"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    text = environment.get_template(template).render(
        percent=score_text.percent,
        made_with=score_text.made_with,
        task_count=score_text.tasks,
        code_style=code_style(),
        policy="POLICY",
        **values,
    )
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(each.encode()).digest()).decode()}'" for each in scripts]
    allowed = " ".join(hashes) or "'none'"
    return text.replace("POLICY", f"default-src 'none'; style-src 'unsafe-inline'; script-src {allowed}", 1)


def highlighted(code: str) -> markupsafe.Markup:
    """Returns a program as HTML: coloured where pygments (the extra `evaluate`) is installed, escaped in any case."""
    if importlib.util.find_spec("pygments") is None:
        return markupsafe.Markup(html.escape(code))
    import pygments
    import pygments.formatters
    import pygments.lexers

    # A lexer changes nothing of the text here: what is judged is what is shown.
    lexer = pygments.lexers.get_lexer_by_name("python", stripnl=False, ensurenl=False)
    formatter = pygments.formatters.get_formatter_by_name("html", nowrap=True)
    return markupsafe.Markup(pygments.highlight(code, lexer, formatter))


def code_style() -> markupsafe.Markup:
    """Returns the CSS of the colours, light and dark; nothing without pygments."""
    if importlib.util.find_spec("pygments") is None:
        return markupsafe.Markup("")
    import pygments.formatters

    rules = []
    for theme, style in THEMES.items():
        formatter = pygments.formatters.get_formatter_by_name("html", style=style)
        # The page has backgrounds of its own.
        lines = [line for line in formatter.get_style_defs("pre").splitlines() if "background" not in line]
        rules.append(f"@media (prefers-color-scheme: {theme}) {{\n" + "\n".join(lines) + "\n}")
    return markupsafe.Markup("\n".join(rules))


def prompt_text(style: str, benchmark: Benchmark, task: Task) -> str:
    """Returns what the model was shown, as one text."""
    prompt = shown(style, benchmark, task)
    parts = [f"[{role}]\n{content}" for role, content in prompt.messages]
    return "\n\n".join([*parts, f"[assistant]\n{prompt.prefill}"] if prompt.prefill else parts) or prompt.text


def _classes(verdict: Verdict) -> set[str]:
    # All that the table of errors counts: its classes are what tasks are chosen by.
    failed = verdict.judged.failed
    return set() if failed is None else set(failed.failing)
