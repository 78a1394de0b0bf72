"""Reference log-probs: one number per weighted token, computed once, kept on disk, refused where they do not fit.

A cache is a folder: `reference.json` (the fingerprint) and, for each split, TFRecord parts whose record i holds the
float32 log-probs of pair i's terms, chosen side first: the same numbers in every layout. Every size follows from the
dataset's index, so a record's place is arithmetic. A part is written whole or not at all: an interrupted pass goes on
with the parts that are missing.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from iterpref_jax.atomic import replace_text
from iterpref_jax.data import tfrecord
from iterpref_jax.data.batch import RowBatch
from iterpref_jax.data.layout import Costs, RowSettings, Weighting
from iterpref_jax.data.packing import Plan, pass_plan
from iterpref_jax.data.pipeline import PipelineSettings, StepSource, iterate
from iterpref_jax.errors import UserError
from iterpref_jax.parallel import distributed
from iterpref_jax.progress import progress, say
from iterpref_jax.train.flight import Flight
from iterpref_jax.train.signals import Stop

ABOUT_FILE = "reference.json"
# A forward pass keeps no activations, so that more rows than in training go at a time.
LARGER = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReferenceSettings:
    """Where the cache lies (empty: `reference/` in the run's folder) and how it is computed.

    A part of `pairs_per_part` pairs is one call of the device, at most `rows_per_microbatch` rows at a time (0:
    `LARGER` times those of training).
    """

    path: str
    pairs_per_part: int
    rows_per_microbatch: int

    def __post_init__(self):
        if self.rows_per_microbatch < 0:
            raise UserError(f"reference.rows_per_microbatch must be at least 0, got {self.rows_per_microbatch}")
        if self.pairs_per_part < 1:
            raise UserError(f"reference.pairs_per_part must be at least 1, got {self.pairs_per_part}")


def weighting_fingerprint(weighting: Weighting) -> dict[str, Any]:
    """Returns what decides which targets are scored (the values of the weights do not matter)."""
    recipe = weighting.recipe
    return {
        "chosen": "all" if recipe.nll else recipe.chosen,
        "rejected": recipe.rejected,
        "hybrid_seed": weighting.seed if recipe.rejected == "hybrid" else None,
    }


class ReferenceSplit:
    """Random access to the cached log-probs of one split: `cache[i] -> float32 [terms of pair i]`."""

    def __init__(self, folder: epath.Path, terms: np.ndarray, pairs_per_part: int):
        self._folder = folder
        self._lengths = 4 * terms
        self.pairs_per_part = pairs_per_part
        self._offsets = np.concatenate([[0], np.cumsum(self._lengths + tfrecord.FRAME_BYTES)])
        self._files = [tfrecord.RecordFile(path) for path in self.paths()]

    def __len__(self) -> int:
        return len(self._lengths)

    def paths(self) -> list[epath.Path]:
        """Returns the part files, whether or not they exist yet."""
        return [self._folder / f"part-{number:05d}" for number in range(math.ceil(len(self) / self.pairs_per_part))]

    def missing(self) -> list[int]:
        """Returns the numbers of the parts that are not there, or not whole."""
        return [number for number, path in enumerate(self.paths()) if not self._is_whole(number, path)]

    def _is_whole(self, number: int, path: epath.Path) -> bool:
        if not path.exists():
            return False
        first = number * self.pairs_per_part
        last = min(first + self.pairs_per_part, len(self))
        if path.stat().length == self._offsets[last] - self._offsets[first]:
            return True
        say(f"{path} was cut short: computing it anew")
        return False

    def __getitem__(self, i: int) -> np.ndarray:
        part, record = divmod(i, self.pairs_per_part)
        offset = self._offsets[i] - self._offsets[part * self.pairs_per_part]
        try:
            data = self._files[part].read(int(offset), int(self._lengths[i]), record=record)
        except UserError as error:
            mend = f"delete {self._files[part].path} and run the same command again: only this part is computed anew"
            raise UserError(f"reference cache: {error}; here: {mend}") from error
        return np.frombuffer(data, np.float32)


def open_cache(path: str, fingerprint: dict[str, Any]) -> int | None:
    """Returns the pairs a part of the cache at `path`, or None if there is no cache.

    Raises:
        UserError: the cache was made from something else; every field that differs is named.
    """
    about = epath.Path(path) / ABOUT_FILE
    if not about.exists():
        return None
    try:
        content = json.loads(about.read_text())
        found, per_part = content["fingerprint"], int(content["pairs_per_part"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{about} is damaged ({error}); delete {path} to compute the cache anew") from error
    differing = sorted(key for key in found | fingerprint if found.get(key) != fingerprint.get(key))
    if differing:
        listed = "\n  ".join(
            f"{key}: cache {_short(found.get(key))}, run {_short(fingerprint.get(key))}" for key in differing
        )
        raise UserError(
            f"the reference cache {path} does not belong to this run; it differs in\n  {listed}\n"
            "delete it, or set reference.path to another folder, to compute it anew"
        )
    return per_part


def create_cache(path: str, fingerprint: dict[str, Any], pairs_per_part: int) -> int:
    """Writes the fingerprint of a new cache (or checks an existing one); returns the pairs a part."""
    found = open_cache(path, fingerprint)
    if found is not None:
        return found
    folder = epath.Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    about = {"fingerprint": fingerprint, "pairs_per_part": pairs_per_part}
    replace_text(folder / ABOUT_FILE, json.dumps(about, indent=2) + "\n")
    return pairs_per_part


def even_plan(costs: Costs, rows: RowSettings, pairs_per_part: int, *, multiple: int) -> Plan:
    """Returns the plan of a pass over a whole split, one part a step, so that all parts have one shape.

    A microbatch has at most `rows.rows_per_microbatch` rows, and no more than fill the microbatches of the largest part
    evenly: rows without pairs would be computed too. Their number is a multiple of `multiple`.
    """
    plan = pass_plan(costs, rows, pairs_per_step=pairs_per_part)
    even = math.ceil(plan.most_rows / plan.microbatches)
    return dataclasses.replace(plan, rows_per_microbatch=math.ceil(even / multiple) * multiple)


def fill(
    cache: ReferenceSplit,
    missing: Sequence[int],
    source: StepSource,
    score: Callable[[RowBatch], jax.Array],
    pipeline: PipelineSettings,
    should_stop: Callable[[], bool],
    *,
    name: str,
) -> bool:
    """Computes the `missing` parts of a split; returns False if it was asked to stop before the end.

    See `score_parts` for `source` and `score`. Process 0 writes.
    """
    paths = cache.paths()

    def write(part: int, records: dict[int, np.ndarray]) -> None:
        if distributed.is_main():
            _write_part(paths[part], [records[record] for record in sorted(records)])

    if missing:
        paths[0].parent.mkdir(parents=True, exist_ok=True)
    return score_parts(source, missing, score, pipeline, should_stop, write, name=f"reference/{name}")


def score_parts(
    source: StepSource,
    parts: Sequence[int],
    score: Callable[[RowBatch], jax.Array],
    pipeline: PipelineSettings,
    should_stop: Callable[[], bool],
    read: Callable[[int, dict[int, np.ndarray]], None],
    *,
    name: str,
) -> bool:
    """Gives `read` the number of each part and the log-probs of its records' terms; False if asked to stop before.

    `source` has a step for every part (`even_plan`). `score` starts the computation of the log-probs of a part's terms,
    over all hosts [A, R, E], and does not wait for it. All hosts read the same.
    """
    if not parts:
        return True
    plan, wanted = source.plan, set(parts)
    done = sum(len(plan.records(part)) for part in range(plan.steps) if part not in wanted)
    stop = Stop(should_stop, name)
    with progress(f"log-probs ({name})", plan.pairs, "pairs", start=done) as advance:

        def land(scored: tuple[int, jax.Array]) -> None:
            part, logps = scored
            records = _by_record(np.asarray(logps), plan, part)
            read(part, records)
            advance(len(records))

        flight, stopped = Flight(land), False
        for number, (part, batch) in enumerate(zip(parts, iterate(source, pipeline, parts), strict=True)):
            stopped = stop.at(number)
            if stopped:
                break
            flight.put((part, score(batch)))
        flight.land()
    return not stopped


def _by_record(logps: np.ndarray, plan: Plan, part: int) -> dict[int, np.ndarray]:
    """Returns the log-probs of every record's terms, in their order; `logps` are those of the rows' terms."""
    found = {}
    for number, trees in enumerate(plan.rows(part)):
        place, start = divmod(number, plan.rows_per_microbatch), 0
        values = logps[place]
        for record in (record for tree in trees for record in tree):
            stop = start + int(plan.costs.terms[record])
            found[record] = values[start:stop]
            start = stop
    bad = [record for record, values in found.items() if not np.isfinite(values).all()]
    if bad:
        raise UserError(f"the model gives NaN or infinite log-probs for pair(s) {bad[:10]}; check its weights")
    return found


def _write_part(path: epath.Path, records: list[np.ndarray]) -> None:
    # Runs may share a cache: each writes beside under a name of its own, and equal parts replace each other.
    partial = path.parent / f"{path.name}.{socket.gethostname()}-{os.getpid()}.partial"
    tfrecord.write_records(partial, [np.ascontiguousarray(values, np.float32).tobytes() for values in records])
    partial.replace(path)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:28]}...{text[-28:]}"
