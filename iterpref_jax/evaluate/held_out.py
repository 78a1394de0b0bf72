"""What the log-probs of whole held-out pairs say: ranking, margins and log-ratios by segment and by group of pairs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from iterpref_jax.data.groups import Grouping, groupings
from iterpref_jax.data.layout import FOCUS, REST, SHARED, token_parts
from iterpref_jax.data.schema import Example, Index
from iterpref_jax.evaluate.bootstrap import Estimate, TaskBootstrap

SIDES = ("chosen", "rejected")
# Focus tokens within the common prefix stand apart: the paper's D- holds them, and between the sides they cancel.
SEGMENTS = ("shared", "shared_focus", "focus", "after")
BOOTSTRAP = {"samples": 2000, "seed": 0}


@dataclasses.dataclass(frozen=True, eq=False)
class Scored:
    """Sums over each side's segments, [pairs, SIDES, SEGMENTS] in float64, and what is known of the pairs."""

    examples: tuple[Example, ...]
    groups: dict[str, Grouping]
    tokens: np.ndarray
    policy: np.ndarray
    reference: np.ndarray
    beta: float


def scored(
    examples: Sequence[Example],
    index: Index,
    policy: Sequence[np.ndarray],
    reference: Sequence[np.ndarray],
    *,
    beta: float,
) -> Scored:
    """Sums the log-probs of each pair's tokens (chosen side first) by segment."""
    places = [_segments(example) for example in examples]

    def sums(values: Sequence[np.ndarray]) -> np.ndarray:
        both = zip(places, values, strict=True)
        flat = [np.bincount(place, np.asarray(value, np.float64), 2 * len(SEGMENTS)) for place, value in both]
        return np.stack(flat).reshape(-1, len(SIDES), len(SEGMENTS))

    groups = groupings(index, [example.error_type for example in examples], most=0)
    tokens = sums([np.ones(len(place)) for place in places])
    return Scored(tuple(examples), groups, tokens, sums(policy), sums(reference), beta)


def _segments(example: Example) -> np.ndarray:
    """Returns the place in the flat [SIDES, SEGMENTS] of each token, chosen side first."""
    found = []
    for side, (parts, focus) in enumerate(
        zip(token_parts(example), (example.chosen_focus, example.rejected_focus), strict=True)
    ):
        segment = np.select([(parts == SHARED) & (focus == 0), parts == SHARED, parts == FOCUS], [0, 1, 2], 3)
        assert ((segment == 3) == (parts == REST)).all()
        found.append(segment + side * len(SEGMENTS))
    return np.concatenate(found)


def pair_metrics(found: Scored) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns what each metric is the ratio of sums of, by pair: (numerator [pairs], denominator [pairs]).

    `rewards/*` weigh all of both sides (DPO's), `target/*` all of the chosen one against D- (the paper's), `focus/*`
    D+ against D- where the sides differ (log-ratios, without beta). `logps/*` need no reference; accuracies count
    ties as wrong, as TRL does.
    """
    ratio, ones = found.policy - found.reference, np.ones(len(found.tokens))
    chosen, rejected = ratio.sum(2).T
    wrong = ratio[:, 1, 1:3].sum(1)
    focus = ratio[:, 0, 2] - ratio[:, 1, 2]
    lengths, logps = found.tokens.sum(2).T, found.policy.sum(2).T
    per_token = logps / np.maximum(lengths, 1)
    values = {
        "rewards/accuracies": chosen > rejected,
        "rewards/margins": found.beta * (chosen - rejected),
        "rewards/chosen": found.beta * chosen,
        "rewards/rejected": found.beta * rejected,
        "target/accuracies": chosen > wrong,
        "target/margins": found.beta * (chosen - wrong),
        "focus/accuracies": focus > 0,
        "focus/margins": focus,
        "logps/chosen": logps[0],
        "logps/rejected": logps[1],
        "logps/accuracies": per_token[0] > per_token[1],
        "nll/chosen": -per_token[0],
    }
    metrics = {name: (value.astype(np.float64), ones) for name, value in values.items()}
    for side, name in enumerate(SIDES):
        for segment, places in (("shared", slice(0, 2)), ("focus", slice(2, 3)), ("after", slice(3, 4))):
            sums, counts = (values[:, side, places].sum(1) for values in (ratio, found.tokens))
            metrics[f"logratios/{name}_{segment}"] = (sums, ones)
            metrics[f"logratios_per_token/{name}_{segment}"] = (sums, counts)
    return metrics


def summary(found: Scored) -> dict[str, Any]:
    """Returns every metric with its interval, over all pairs and over each group."""
    metrics = pair_metrics(found)
    numerators, denominators = (np.stack(columns, axis=1) for columns in zip(*metrics.values(), strict=True))
    bootstrap = TaskBootstrap([example.task for example in found.examples], **BOOTSTRAP)

    def over(is_in: np.ndarray) -> dict[str, Any]:
        which = is_in[:, None]
        estimates = bootstrap.ratios(numerators * which, denominators * which)
        tasks = {example.task for example, inside in zip(found.examples, is_in, strict=True) if inside}
        named = {name: _plain(estimate) for name, estimate in zip(metrics, estimates, strict=True)}
        return {"pairs": int(is_in.sum()), "tasks": len(tasks), "metrics": named}

    return {
        "interval": {"method": "bootstrap over tasks", "level": 0.95} | BOOTSTRAP,
        "overall": over(np.ones(len(found.tokens), bool)),
        "groups": {
            grouping: {name: over(group.number == number) for number, name in enumerate(group.names)}
            for grouping, group in found.groups.items()
        },
    }


def rows(found: Scored) -> Iterator[dict[str, Any]]:
    """Yields a JSON object a pair: who it is, its groups, its metrics, and the sums that they are made of."""
    metrics = pair_metrics(found)
    per_pair = {name: top for name, (top, _) in metrics.items() if not name.startswith("logratios_per_token/")}
    for number, example in enumerate(found.examples):
        yield {
            "pair_id": example.pair_id,
            "task": example.task,
            "error_type": example.error_type,
            "groups": {name: group.names[group.number[number]] for name, group in found.groups.items()},
            "metrics": {name: float(value[number]) for name, value in per_pair.items()},
            "sums": {
                f"{side}_{segment}": {
                    "tokens": int(found.tokens[number, i, j]),
                    "logp": float(found.policy[number, i, j]),
                    "ref_logp": float(found.reference[number, i, j]),
                }
                for i, side in enumerate(SIDES)
                for j, segment in enumerate(SEGMENTS)
            },
        }


def _plain(estimate: Estimate | None) -> dict[str, float] | None:
    return None if estimate is None else dataclasses.asdict(estimate)
