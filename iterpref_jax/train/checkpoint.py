"""Orbax checkpoints behind one small interface: Orbax's v1 names still move, and only this file knows them."""

from __future__ import annotations

import logging
from typing import Any

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from iterpref_jax.errors import UserError
from iterpref_jax.models.transformer import Params
from iterpref_jax.train.step import TrainState


class Checkpoints:
    """A folder of numbered checkpoints, saved in the background; a crash leaves only whole ones."""

    def __init__(self, folder: str, *, keep: int, writing: bool):
        """Opens the folder; only the one process that is `writing` removes what a crash left half saved."""
        # Orbax logs a page a checkpoint at INFO level.
        logging.getLogger("absl").setLevel(logging.WARNING)
        # Orbax wants absolute paths.
        self.folder = epath.Path(folder).resolve()
        latest_n: Any = ocp.training.preservation_policies.LatestN(keep)
        self._orbax = ocp.training.Checkpointer(
            self.folder, preservation_policy=latest_n, cleanup_tmp_directories=writing
        )

    def steps(self) -> list[int]:
        """Returns the steps of all whole checkpoints, oldest first."""
        return sorted(checkpoint.step for checkpoint in self._orbax.checkpoints)

    def save(self, step: int, state: TrainState, about: dict[str, Any]) -> None:
        """Starts to save; the arrays may be donated at once. `about` (JSON: configuration, data state) goes inside."""
        if step not in self.steps():
            self._orbax.save_checkpointables_async(step, {"state": _stored(state)}, force=True, custom_metadata=about)

    def about(self, step: int) -> dict[str, Any]:
        """Returns what `save` was given as `about`."""
        try:
            about: Any = self._orbax.checkpointables_metadata(step).custom_metadata
        except (ValueError, KeyError, OSError) as error:
            raise self._unreadable(step, error) from error
        if not isinstance(about, dict) or not about:
            raise self._unreadable(step, ValueError("its metadata is missing"))
        return about

    def restore(self, step: int, shapes: TrainState, shardings: TrainState, frozen: Params) -> TrainState:
        """Reads a checkpoint into the given shapes and shardings (of any mesh); see `_load` for the errors.

        `frozen` parameters are not in it: the caller reads them where the run found them.
        """
        return TrainState(**self._load(step, _stored(_targets(shapes, shardings))), frozen=frozen)

    def restore_params(self, step: int, shapes: Params, shardings: Params) -> Params:
        """Reads the parameters alone: the optimizer's state is left on disk."""
        stored = self._orbax.checkpointables_metadata(step).metadata["state"]
        skipped = jax.tree.map(lambda _: ocp.PLACEHOLDER, stored)
        return self._load(step, {**skipped, "params": _targets(shapes, shardings)})["params"]

    def _load(self, step: int, target: dict[str, Any]) -> dict[str, Any]:
        """Reads the state of one checkpoint.

        Raises:
            UserError: a checkpoint that cannot be read, with the step that can be tried instead.
        """
        try:
            return self._orbax.load_checkpointables(step, {"state": target})["state"]
        except (ValueError, KeyError, OSError) as error:
            raise self._unreadable(step, error) from error

    def _unreadable(self, step: int, error: Exception) -> UserError:
        others = [other for other in self.steps() if other != step]
        advice = f"move {self.folder / str(step)} away to go on from step {others[-1]}" if others else "start a new run"
        # Orbax's messages go on for pages.
        reason = str(error).strip().split("\n")[0][:200]
        return UserError(f"checkpoint {self.folder / str(step)} cannot be read ({reason}); {advice}")

    def wait(self) -> None:
        """Waits until the save in progress is on disk."""
        self._orbax.wait()

    def close(self) -> None:
        """Waits until everything is on disk; raises what failed in the background."""
        self._orbax.close()


def _stored(state: TrainState) -> dict[str, Any]:
    return {name: value for name, value in state._asdict().items() if name != "frozen"}


def _targets(shapes: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), shapes, shardings
    )
