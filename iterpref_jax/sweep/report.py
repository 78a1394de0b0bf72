"""The files of a sweep: results.json, table.md and pictures of means with their intervals."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from iterpref_jax.atomic import replace_text

RESULTS_FILE, TABLE_FILE = "results.json", "table.md"
# What the table and the pictures show of held-out pairs; figures of extra commands come behind.
SHOWN = (
    "focus/accuracies",
    "focus/margins",
    "target/accuracies",
    "rewards/accuracies",
    "logps/accuracies",
    "nll/chosen",
    "logratios/chosen_focus",
    "logratios/rejected_focus",
)
DRAWN = ("focus/accuracies", "rewards/accuracies", "nll/chosen")
COST = ("cost/updates", "cost/pairs", "cost/tokens", "cost/update_s")
NOTE = """\
Means over seeds with 95% intervals (Student's t over seeds; a single seed has none). Differences are paired by seed; in
brackets behind them is the interval over held-out tasks (bootstrap, values averaged over seeds). All variants are
evaluated on the same held-out pairs, those of the first variant. An interval that holds 0 decides nothing.
"""


def write(workdir: Path, title: str, about: str, content: dict[str, Any]) -> Path:
    """Writes results.json, table.md and the pictures; returns the table's path."""
    pictures = _draw(workdir, content)
    replace_text(workdir / RESULTS_FILE, json.dumps({"sweep": title} | content, indent=1) + "\n")
    replace_text(workdir / TABLE_FILE, table(title, about, content, pictures))
    return workdir / TABLE_FILE


def table(title: str, about: str, content: dict[str, Any], pictures: list[str]) -> str:
    """Returns table.md."""
    variants = content["variants"]
    shown = shown_metrics(content)
    parts = [f"# Sweep {title}\n", *([about.strip() + "\n"] if about.strip() else []), NOTE]
    if content["unfinished"]:
        parts.append(f"Not finished: {', '.join(content['unfinished'])}.\n")
    parts.append("## Held-out pairs" + (" and scores\n" if _scores(content) else "\n"))
    parts += _rows(shown, {name: found["metrics"] for name, found in variants.items()}, _mean)
    gaps = {name: found["difference"] for name, found in variants.items() if found.get("difference")}
    if gaps:
        parts += [f"\n## Difference from `{content['baseline']}`\n", *_rows(shown, gaps, _gap)]
    parts += ["\n## Cost (mean of a run)\n"]
    parts += _rows(list(COST), {name: found["metrics"] for name, found in variants.items()}, _plain)
    parts += [f"\n![{name}]({name})" for name in pictures]
    return "\n".join(parts) + "\n"


def shown_metrics(content: dict[str, Any]) -> list[str]:
    """Returns the metrics of the table, as far as a run has them: `SHOWN`, and scores of extra commands."""
    return _present(SHOWN, content) + _scores(content)


def _scores(content: dict[str, Any]) -> list[str]:
    return [name for name in _names(content) if " pass@" in name]


def _present(wanted: tuple[str, ...], content: dict[str, Any]) -> list[str]:
    names = _names(content)
    return [name for name in wanted if name in names]


def _names(content: dict[str, Any]) -> dict[str, None]:
    return dict.fromkeys(name for found in content["variants"].values() for name in found["metrics"])


def _rows(metrics: list[str], values: dict[str, dict[str, Any]], cell: Any) -> list[str]:
    head = [f"| | {' | '.join(name.removeprefix('cost/') for name in metrics)} |", "|---" * (1 + len(metrics)) + "|"]
    return head + [
        f"| {name} | {' | '.join(cell(found[metric]) if metric in found else '' for metric in metrics)} |"
        for name, found in values.items()
    ]


def _plain(value: dict[str, Any]) -> str:
    return f"{value['mean']:,.0f}"


def _mean(value: dict[str, Any]) -> str:
    return f"{value['mean']:.4f}" + ("" if value["low"] is None else f" ± {value['high'] - value['mean']:.4f}")


def _gap(value: dict[str, Any]) -> str:
    text = f"{value['mean']:+.4f}" + ("" if value["low"] is None else f" ± {value['high'] - value['mean']:.4f}")
    return text if value["tasks_low"] is None else f"{text} [{value['tasks_low']:+.4f}, {value['tasks_high']:+.4f}]"


def _draw(workdir: Path, content: dict[str, Any]) -> list[str]:
    """Draws a dot with its interval for every variant and the dots of its seeds, as PNG and SVG; returns the PNGs."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    variants = {name: found for name, found in content["variants"].items() if found["seeds"]}
    drawn = []
    for metric in _present(DRAWN, content) + _scores(content):
        figure, axes = plt.subplots(figsize=(7, 1.2 + 0.4 * len(variants)), layout="constrained")
        for place, found in enumerate(variants.values()):
            _dot(axes, place, metric, found)
        axes.set_yticks(range(len(variants)), list(variants))
        axes.set_ylim(len(variants) - 0.5, -0.5)
        axes.grid(alpha=0.3)
        axes.set(title=f"{metric}: mean over seeds, 95% t interval")
        stem = metric.replace("/", "_").replace(" ", "_")
        for kind in ("svg", "png"):
            picture = io.BytesIO()
            figure.savefig(picture, format=kind, dpi=110)
            (workdir / f"{stem}.{kind}").write_bytes(picture.getvalue())
        plt.close(figure)
        drawn.append(f"{stem}.png")
    return drawn


def _dot(axes: Any, place: int, metric: str, found: dict[str, Any]) -> None:
    value = found["metrics"].get(metric)
    if value is None:
        return
    seeds = [numbers[metric] for numbers in found["seeds"].values() if metric in numbers]
    axes.plot(seeds, [place] * len(seeds), ".", color="C0", alpha=0.5)
    if value["low"] is not None:
        axes.plot([value["low"], value["high"]], [place, place], color="C0", linewidth=1.5)
    axes.plot([value["mean"]], [place], "o", color="C0")
