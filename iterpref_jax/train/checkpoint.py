"""Orbax checkpoints behind one small interface: Orbax's v1 names still move, and only this file knows them."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import sys
import types
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from iterpref_jax.errors import UserError
from iterpref_jax.models.transformer import Params
from iterpref_jax.train.best import Best
from iterpref_jax.train.checksums import checksums, named
from iterpref_jax.train.conversion import converted, sources
from iterpref_jax.train.saved import steps_in
from iterpref_jax.train.step import TrainState

# Orbax gives up a save after 20 minutes, which 400 GB of a 32B run pass on a slow disk. Of hosts that vanish meanwhile
# the watch hears.
SAVED_WITHIN_S = 24 * 3600


class Checkpoints:
    """A folder of numbered checkpoints, saved in the background; a crash leaves only whole ones.

    Each holds the checksum of every array, taken on the devices when it was saved and compared when it is read.
    """

    def __init__(self, folder: str, *, keep: int, writing: bool, best: Best | None = None):
        """Opens the folder; only the one process that is `writing` removes what a crash left half saved.

        The newest `keep` are kept, and the one that is best by what `scored` says.

        Raises:
            UserError: what looks like a checkpoint but is none any more.
        """
        # Orbax logs a page a checkpoint, and pages of warnings about a damaged one, which it raises anyway.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        silence_other_reads()
        # Orbax wants absolute paths; a bucket's is one, and `resolve` would put it below the current folder.
        self.folder = epath.Path(folder) if "://" in folder else epath.Path(folder).resolve()
        self._kept = _Kept(keep, best)
        kept: Any = self._kept
        try:
            self._orbax = ocp.training.Checkpointer(
                self.folder,
                context=ocp.Context(async_options=ocp.options.AsyncOptions(timeout_secs=SAVED_WITHIN_S)),
                preservation_policy=kept,
                cleanup_tmp_directories=writing,
            )
        except _UNREADABLE as error:
            culprit = self._culprit()
            if culprit is None:
                raise
            raise culprit from error
        if writing:
            self._refuse_what_orbax_overlooks()

    def steps(self) -> list[int]:
        """Returns the steps of all whole checkpoints, oldest first."""
        return sorted(checkpoint.step for checkpoint in self._orbax.checkpoints)

    def save(self, step: int, state: TrainState, about: dict[str, Any]) -> None:
        """Starts to save; the arrays may be donated at once. `about` (JSON: configuration, data state) goes inside."""
        if step in self.steps():
            return
        stored = {name: value for name, value in state._asdict().items() if name != "frozen"}
        self._orbax.save_checkpointables_async(
            step, {"state": stored}, force=True, custom_metadata=_sealed(about, named(stored))
        )

    def scored(self, scores: Mapping[int, float]) -> None:
        """Says how good checkpoints are, by their step."""
        self._kept.scores.update(scores)

    def about(self, step: int) -> dict[str, Any]:
        """Returns what `save` was given as `about`."""
        return self._content(step)["about"]

    def restore(self, step: int, shapes: TrainState, shardings: TrainState, frozen: Params) -> TrainState:
        """Reads a checkpoint into the given shapes and shardings (of any mesh); see `_load` for the errors.

        `frozen` parameters are not in it: the caller reads them where the run found them.
        """
        return self._load(step, _targets(shapes, shardings)._replace(frozen={}))._replace(frozen=frozen)

    def restore_params(self, step: int, shapes: Params, shardings: Params) -> Params:
        """Reads the parameters alone: the optimizer's state is left on disk."""
        return self._load(step, {"params": _targets(shapes, shardings)})["params"]

    def wait(self) -> None:
        """Waits until the save in progress is on disk."""
        self._orbax.wait()

    def close(self) -> None:
        """Waits until everything is on disk; raises what failed in the background."""
        self._orbax.close()

    def _load(self, step: int, targets: Any) -> Any:
        """Reads arrays of one checkpoint, checks them and gives them the dtypes of `targets` (shapes with shardings).

        Raises:
            UserError: a checkpoint that cannot be read or was damaged, with the step that can be tried instead.
        """
        known: dict[str, list] = self._content(step)["arrays"]
        wanted = named(targets)
        try:
            stored = sources(wanted, {name: dtype for name, (dtype, _) in known.items()})
            read = self._read(step, stored)
        except _UNREADABLE as error:
            raise self._unreadable(step, error) from error
        bad = [name for name, found in checksums(read).items() if found != known[name][1]]
        if bad:
            more = f" and {len(bad) - 1} more" if bad[1:] else ""
            raise self._refused(step, f"was damaged after it was saved: the checksum of {bad[0]}{more} differs")
        return jax.tree.unflatten(jax.tree.structure(targets), converted(step, read, wanted))

    def _read(self, step: int, stored: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        """Reads the arrays of these names as they are stored; the others are left on disk."""
        tree = self._orbax.checkpointables_metadata(step).metadata["state"]
        if tree is None:
            raise ValueError("the list of its arrays is missing or damaged")
        structure, names = jax.tree.structure(tree), list(named(tree))
        target = jax.tree.unflatten(structure, [stored.get(name, ocp.PLACEHOLDER) for name in names])
        state = self._orbax.load_checkpointables(step, {"state": target})["state"]
        return {name: array for name, array in named(state).items() if name in stored}

    def _content(self, step: int) -> dict[str, Any]:
        """Returns what `_sealed` made."""
        try:
            content: Any = self._orbax.checkpointables_metadata(step).custom_metadata
            if not isinstance(content, dict) or content.get("seal") != _seal(content):
                raise ValueError("its metadata is missing or damaged")
        except _UNREADABLE as error:
            raise self._unreadable(step, error) from error
        return content

    def _unreadable(self, step: int, error: Exception) -> UserError:
        return self._refused(step, f"cannot be read ({_first_line(error)})")

    def _refused(self, step: int, why: str) -> UserError:
        others = [other for other in steps_in(self.folder) if other != step]
        rest = [other for other in others if other < step] or others
        advice = f"move {self.folder / str(step)} away to go on from step {rest[-1]}" if rest else "start a new run"
        return UserError(f"checkpoint {self.folder / str(step)} {why}; {advice}")

    def _refuse_what_orbax_overlooks(self) -> None:
        """An older checkpoint is never used in silence because a newer one has lost its files."""
        for step in sorted(set(steps_in(self.folder)) - set(self.steps())):
            raise self._refused(step, "is not whole: files of it are missing")

    def _culprit(self) -> UserError | None:
        """Returns what to say when the checkpoints cannot even be listed, if one of them is why."""
        for step in reversed(steps_in(self.folder)):
            try:
                ocp.checkpointables_metadata(self.folder / str(step))
            except _UNREADABLE as reason:
                return self._unreadable(step, reason)
        return None


# What Orbax and TensorStore raise for files that are missing, cut short or damaged.
_UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, OSError)


class _Kept:
    """The newest `keep` checkpoints, and the best one: a preservation policy of Orbax's.

    Orbax has one of its own for the best, but it needs the metric when a checkpoint is saved; here a checkpoint is
    saved first and evaluated afterwards.
    """

    def __init__(self, keep: int, best: Best | None):
        self._keep, self._best = keep, best
        self.scores: dict[int, float] = {}

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = set(sorted(steps)[-self._keep :])
        if self._best is not None:
            kept.add(self._best.step({step: self.scores[step] for step in steps if step in self.scores}))
        return [step in kept for step in steps]


@functools.cache
def silence_other_reads() -> None:
    """Of a read that fails array by array, the first failure is raised; the others would be told page by page.

    asyncio logs those that failed too, and Python prints those that were dropped half done. All else is told as before.
    """
    logging.getLogger("asyncio").addFilter(lambda record: not _is_of_a_read(record.getMessage()))
    told = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        dropped = unraisable.object
        if not (isinstance(dropped, types.CoroutineType) and _is_of_a_read(dropped.cr_code.co_filename)):
            told(unraisable)

    sys.unraisablehook = hook


def _is_of_a_read(told: str) -> bool:
    return "orbax" in told or "tensorstore" in told


def _sealed(about: dict[str, Any], arrays: dict[str, jax.Array]) -> dict[str, Any]:
    sums = checksums(arrays)
    content = {"about": about, "arrays": {name: [str(array.dtype), sums[name]] for name, array in arrays.items()}}
    return content | {"seal": _seal(content)}


def _seal(content: dict[str, Any]) -> str:
    text = json.dumps({key: value for key, value in content.items() if key != "seal"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _first_line(error: BaseException) -> str:
    """Returns the beginning of what was first; Orbax's own messages go on for pages."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = str(error).strip().split("\n")[0].split(" [tensorstore_spec")[0]
    return line if len(line) <= 300 else f"{line[:100]} ... {line[-200:]}"


def _targets(shapes: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), shapes, shardings
    )
