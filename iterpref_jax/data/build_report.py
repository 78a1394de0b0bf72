"""What a build made of its input: counts, lengths, focus shares and token counts of every layout, from the index."""

from __future__ import annotations

import itertools
import json
import pathlib
from typing import Any

import numpy as np

from iterpref_jax.codeflow import filters
from iterpref_jax.data import layout, schema
from iterpref_jax.objectives.weights import find_recipe

EDGES = (0, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
QUANTILES = {"p10": 0.1, "median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
BAR = 40
LAYOUTS = (
    ("separate", "separate", False),
    ("separate+truncate", "separate", True),
    ("shared", "shared", False),
    ("shared+truncate", "shared", True),
    ("tree", "tree", False),
    ("tree+truncate", "tree", True),
)


def write(folder: pathlib.Path, metadata: dict[str, Any], indexes: dict[str, schema.Index]) -> None:
    """Writes `report.json` and `report.md` into a dataset folder."""
    report = make(metadata, indexes)
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (folder / "report.md").write_text(as_markdown(report), encoding="utf-8")


def make(metadata: dict[str, Any], indexes: dict[str, schema.Index]) -> dict[str, Any]:
    """Returns the report on the pairs of all splits; shares are of tokens."""
    columns = {name: np.concatenate([getattr(index, name) for index in indexes.values()]) for name in schema.COLUMNS}
    completions = columns["chosen_len"].sum() + columns["rejected_len"].sum()
    return {
        "inputs": metadata["inputs"],
        "dropped": metadata["dropped"],
        "dropped_examples": metadata["dropped_examples"],
        "splits": {name: {key: about[key] for key in ("pairs", "tasks")} for name, about in metadata["splits"].items()},
        "eval_pairs_with_train_prompt": metadata["eval_pairs_with_train_prompt"],
        "lengths": {
            name: _distribution(columns[column])
            for name, column in (
                ("prompt", "prompt_len"),
                ("chosen", "chosen_len"),
                ("rejected", "rejected_len"),
                ("chosen focus", "chosen_focus_count"),
                ("rejected focus", "rejected_focus_count"),
            )
        },
        "shares": {
            "chosen focus of chosen": _share(columns["chosen_focus_count"], columns["chosen_len"].sum()),
            "rejected focus of rejected": _share(columns["rejected_focus_count"], columns["rejected_len"].sum()),
            "rejected focus inside the common prefix": _share(
                columns["common_rejected_focus"], columns["rejected_focus_count"].sum()
            ),
            "common prefix of completions": _share(2 * columns["common_len"], completions),
        },
        "pairs_without_rejected_focus": int((columns["rejected_focus_count"] == 0).sum()),
        "layout_tokens": layout_tokens(schema.Index(**columns)),
    }


def layout_tokens(index: schema.Index) -> dict[str, int]:
    """Returns the columns that all pairs take in every layout (trees: at most), by the weights of `target_dpo`."""
    weighting = layout.Weighting(recipe=find_recipe("target_dpo"), seed=0, nll_norm="sum")
    totals = {}
    for name, kind, truncate in LAYOUTS:
        # The caps do not enter a pair's cost.
        rows = layout.RowSettings(
            layout=kind, truncate=truncate, tokens=1, lengths=0, targets=0, pairs=0, rows_per_microbatch=1
        )
        totals[name] = int(layout.costs(index, rows, weighting).whole_groups()[0].sum())
    return totals


def as_markdown(report: dict[str, Any]) -> str:
    """Returns the report for a person: tables, and histograms of characters."""
    splits = [f"| {name} | {about['pairs']} | {about['tasks']} |" for name, about in report["splits"].items()]
    meanings = {rule.name: rule.meaning for rule in filters.RULES}
    dropped = [f"| `{name}` | {count} | {meanings[name]} |" for name, count in report["dropped"].items()]
    examples = [f"- `{name}`, the first: {example}" for name, example in report["dropped_examples"].items()]
    full = report["layout_tokens"]["separate"]
    layouts = [f"| {name} | {count} | {count / full:.1%} |" for name, count in report["layout_tokens"].items()]
    parts = [
        ["# Dataset", "", *(f"- {about['name']}: {about['kind']}" for about in report["inputs"])],
        ["## Splits", "", "| split | pairs | tasks |", "|---|---|---|", *splits],
        *([[f"**{leak}**"]] if (leak := leak_warning(report)) else []),
        ["## Dropped", "", "| rule | count | meaning |", "|---|---|---|", *dropped],
        *([examples] if examples else []),
        ["## Tokens a model reads (target_dpo)", "", "| layout | tokens | of separate |", "|---|---|---|", *layouts],
        ["## Shares of tokens", "", *(f"- {name}: {share:.1%}" for name, share in report["shares"].items())],
        [f"- pairs without rejected focus: {report['pairs_without_rejected_focus']}"],
        *(_histogram(name, lengths) for name, lengths in report["lengths"].items()),
    ]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def leak_warning(report: dict[str, Any]) -> str:
    """Returns what is to be said of prompts that stand in both splits; "" if there are none."""
    shared = report["eval_pairs_with_train_prompt"]
    if not shared:
        return ""
    return (
        f"{shared} of {report['splits']['eval']['pairs']} eval pairs have a prompt that train has too, under another "
        "task: held-out numbers will be too good. Give histories and pairs of one question the same task (meta.task of "
        "a trajectory, task of a pair; without one, equal prompts are one task) and build again."
    )


def _distribution(lengths: np.ndarray) -> dict[str, Any]:
    counts = np.histogram(lengths, [*EDGES, np.inf])[0]
    quantiles = {name: int(np.quantile(lengths, q, method="higher")) for name, q in QUANTILES.items()}
    return {"mean": round(float(lengths.mean()), 1), **quantiles, "edges": list(EDGES), "pairs": counts.tolist()}


def _share(part: np.ndarray, whole: np.integer) -> float:
    return round(float(part.sum() / whole), 4) if whole else 0.0


def _histogram(name: str, lengths: dict[str, Any]) -> list[str]:
    edges, counts = lengths["edges"], lengths["pairs"]
    labels = [f"{a}-{b - 1}" for a, b in itertools.pairwise(edges)] + [f"{edges[-1]}-"]
    bars = ["#" * round(BAR * count / max(counts)) for count in counts]
    lines = [
        f"{label:>10} {count:>8} {bar}".rstrip()
        for label, count, bar in zip(labels, counts, bars, strict=True)
        if count
    ]
    summary = ", ".join(f"{key} {lengths[key]}" for key in ("mean", *QUANTILES))
    return [f"## Tokens: {name}", "", summary, "", "```", *lines, "```"]
