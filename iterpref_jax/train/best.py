"""The best of a run's checkpoints by one of its held-out metrics."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from iterpref_jax.errors import UserError, did_you_mean

# Metrics of which less is better, and more, by a word of their name; of others the sign must be given.
_LESS, _MORE = ("loss",), ("accuracies", "margins")


@dataclasses.dataclass(frozen=True)
class Best:
    """A metric of held-out evaluation and whether more of it is better."""

    metric: str
    more: bool

    def step(self, scores: Mapping[int, float]) -> int | None:
        """Returns the step of the best of `scores` (by step), of equals the first; None if there are none."""
        sign = 1 if self.more else -1
        return max(scores, key=lambda step: (sign * scores[step], -step), default=None)

    def score(self, values: Mapping[str, float]) -> float:
        """Returns the metric's value in an evaluation.

        Raises:
            UserError: a metric that evaluation does not give; those that it gives are named.
        """
        if self.metric not in values:
            raise UserError(
                f"train.keep_best: held-out evaluation gives no {self.metric!r}{did_you_mean(self.metric, values)}; "
                f"it gives {', '.join(sorted(values))}"
            )
        return values[self.metric]

    def scores(self, lines: Iterable[Mapping[str, Any]]) -> dict[int, float]:
        """Returns the metric by step, from the lines of a `metrics.jsonl`."""
        return {line["step"]: line[self.metric] for line in lines if line["split"] == "eval" and self.metric in line}


def parse_best(text: str) -> Best | None:
    """Reads `train.keep_best`: a metric, with + or - before it where its name does not say whether more is better.

    >>> parse_best("focus/accuracies"), parse_best("-entropy"), parse_best("")
    (Best(metric='focus/accuracies', more=True), Best(metric='entropy', more=False), None)
    """
    if not text:
        return None
    metric = text.lstrip("+-")
    if text[0] in "+-":
        return Best(metric, text[0] == "+")
    last = metric.rpartition("/")[2]
    if any(word in last for word in _LESS):
        return Best(metric, False)
    if any(word in last for word in _MORE):
        return Best(metric, True)
    raise UserError(
        f"train.keep_best = {text!r}: say whether more of it is better, +{text}, or less, -{text} (names with loss, "
        "accuracies or margins say it themselves)"
    )
