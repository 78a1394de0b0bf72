"""From trajectories to pairs: the rules first, which cost nothing, then a model that is asked in both orders."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Sequence

from iterpref_jax.codeflow import filters, pairs, records
from iterpref_jax.codeflow.endpoint import AskFailed, BudgetSpent, MalformedAnswer
from iterpref_jax.codeflow.generate import lanes
from iterpref_jax.codeflow.generate.settings import PairingSettings
from iterpref_jax.codeflow.generate.writer import Writer

# Reasons of the judge, beside the names of `filters.RULES`.
JUDGED = {
    "judged_same": "the judge found no difference in logic in one of two orders, or in both",
    "unjudged": "the judge could not be asked, or its answer not be read",
}


def by_rules(
    trajectories: Iterable[records.Trajectory], settings: PairingSettings, dropped: collections.Counter[str]
) -> list[records.Pair]:
    """Returns the pairs that no text rule drops; `dropped` counts the others by rule."""
    known, seen, kept = filters.load_benchmarks(settings.filters), set[bytes](), []
    for pair in pairs.make_pairs(trajectories, settings.pairs, dropped):
        _, rule = filters.focus_and_rule(pair, settings.focus, settings.filters, benchmarks=known, seen=seen)
        if rule is None:
            kept.append(pair)
        else:
            dropped[rule] += 1
    return kept


async def by_model(
    found: Sequence[records.Pair],
    writer: Writer,
    at_a_time: int,
    dropped: collections.Counter[str],
    on_pair: Callable[[], None],
) -> tuple[list[records.Pair], BudgetSpent | None]:
    """Returns the pairs whose sides differ in logic in the model's opinion, whichever comes first, in their order; and
    what ended the budget, if some could not be judged for its sake (`dropped["unjudged"]` counts them too)."""
    judged = await lanes.each(found, lambda pair: _judge(pair, writer, on_pair), at_a_time)
    kept, spent = [], None
    for pair, reason in zip(found, judged, strict=True):
        if isinstance(reason, BudgetSpent):
            spent, reason = reason, "unjudged"
        if reason:
            dropped[reason] += 1
        else:
            kept.append(dataclasses.replace(pair, meta=pair.meta | {"judge": writer.judge}))
    return kept, spent


async def _judge(pair: records.Pair, writer: Writer, on_pair: Callable[[], None]) -> str | BudgetSpent:
    assert isinstance(pair.prompt, str)
    try:
        # One after the other: a difference denied once needs no second opinion.
        for first, second in ((pair.chosen, pair.rejected), (pair.rejected, pair.chosen)):
            if not await writer.differ(pair.prompt, first, second):
                return "judged_same"
    except (AskFailed, MalformedAnswer):
        return "unjudged"
    except BudgetSpent as error:
        return error
    finally:
        on_pair()
    return ""
