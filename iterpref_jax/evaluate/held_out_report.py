"""The files of a held-out evaluation: heldout.json, heldout.md, pairs.jsonl."""

from __future__ import annotations

import json
from typing import Any

from etils import epath

from iterpref_jax.atomic import replace_text
from iterpref_jax.codeflow.rows import write_rows
from iterpref_jax.evaluate.held_out import Scored, rows, summary

JSON_FILE, TABLE_FILE, PAIRS_FILE = "heldout.json", "heldout.md", "pairs.jsonl"
SHOWN = ("rewards/accuracies", "target/accuracies", "focus/accuracies", "rewards/margins", "focus/margins")
TITLES = {
    "error_type": "By how the rejected side failed",
    "focus_tokens": "By size of the difference (tokens of D+ and D-)",
    "completion_tokens": "By length (tokens of the longer side)",
}
NOTE = """\
Values with 95% intervals: {samples} bootstrap resamples of the tasks (pairs of one task are no independent evidence).
`rewards/*`: all of both sides (DPO's), times beta = {beta:g}. `target/*`: all of y+ against D- (the paper's).
`focus/*`: D+ against D- where the sides differ, log-ratios without beta. Accuracies count ties as wrong. Log-ratios
are policy against reference; `shared` is before the sides differ.
"""


def write(out: str, found: Scored, about: dict[str, Any]) -> dict[str, Any]:
    """Writes the three files, heldout.json last; returns its content. `about` says what was evaluated."""
    folder = epath.Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / PAIRS_FILE, rows(found))
    content = about | {"beta": found.beta} | summary(found)
    replace_text(folder / TABLE_FILE, table(content))
    replace_text(folder / JSON_FILE, json.dumps(content, indent=1) + "\n")
    return content


def table(content: dict[str, Any]) -> str:
    """Returns heldout.md."""
    overall = content["overall"]
    lines = [
        "# Held-out pairs\n",
        f"Policy: {content['policy']}. Reference: {content['reference']}. Data: {content['data']}, "
        f"{overall['pairs']} pairs of {overall['tasks']} tasks.\n",
        NOTE.format(samples=content["interval"]["samples"], beta=content["beta"]),
        "| metric | value | 95% interval |\n|---|---|---|",
    ]
    lines += [
        f"| {name} | {value['value']:.4f} | {value['low']:.4f} to {value['high']:.4f} |"
        for name, value in overall["metrics"].items()
        if value is not None and not name.startswith("logratios")
    ]
    lines += ["\n## Log-ratios by segment\n", "| segment | sum a pair | a token |\n|---|---|---|"]
    lines += _segments(overall["metrics"])
    for grouping, groups in content["groups"].items():
        lines += [f"\n## {TITLES[grouping]}\n", f"| | pairs | tasks | {' | '.join(SHOWN)} |", "|---" * 8 + "|"]
        lines += [_group(name, group) for name, group in groups.items()]
    return "\n".join(lines) + "\n"


def _segments(metrics: dict[str, Any]) -> list[str]:
    kind = "logratios/"
    names = [name.removeprefix(kind) for name in metrics if name.startswith(kind)]
    return [
        f"| {name} | {_with_interval(metrics[f'logratios/{name}'])} | "
        f"{_with_interval(metrics[f'logratios_per_token/{name}'])} |"
        for name in names
    ]


def _group(name: str, group: dict[str, Any]) -> str:
    values = " | ".join(_with_interval(group["metrics"][metric]) for metric in SHOWN)
    return f"| {name} | {group['pairs']} | {group['tasks']} | {values} |"


def _with_interval(value: dict[str, float] | None) -> str:
    return "" if value is None else f"{value['value']:.4f} ({value['low']:.4f} to {value['high']:.4f})"
