"""Where numbers go: `metrics.jsonl` (one JSON object a line), TensorBoard, and throughput derived from a batch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from etils import epath

from iterpref_jax.atomic import replace_text
from iterpref_jax.data.batch import RowBatch
from iterpref_jax.errors import UserError
from iterpref_jax.models.config import ModelConfig
from iterpref_jax.models.lora import Lora
from iterpref_jax.objectives.preference import used_terms
from iterpref_jax.parallel.topology import chip_of
from iterpref_jax.train.board import Board
from iterpref_jax.train.flops import model_flops, seen


class MetricsLog:
    """Appends to `metrics.jsonl` and TensorBoard under a run's folder; a resumed run drops what came after its step."""

    def __init__(self, workdir: Path, *, resume_step: int):
        self._path = workdir / "metrics.jsonl"
        kept = []
        if self._path.exists():
            kept = [line for line in read_metrics(self._path) if line["step"] <= resume_step]
            replace_text(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        self._written = {(line["step"], line["split"]) for line in kept}
        self._file = self._path.open("a")
        self._board = Board(workdir / "tensorboard", first_step=resume_step + 1)

    def has(self, step: int, split: str) -> bool:
        """Whether the file holds this line, from before a resume."""
        return (step, split) in self._written

    def write(self, step: int, split: str, values: Mapping[str, float | None]) -> None:
        """Writes the values of `split` (train or eval) after update number `step`."""
        self._file.write(json.dumps({"step": step, "split": split, **values}, allow_nan=False) + "\n")
        self._file.flush()
        prefix = "" if split == "train" else f"{split}/"
        self._board.write(step, {prefix + name: value for name, value in values.items() if value is not None})

    def close(self) -> None:
        self._file.close()
        self._board.close()


class NoLog:
    """Stands for the log on the hosts that do not write it."""

    def has(self, step: int, split: str) -> bool:
        return False

    def write(self, step: int, split: str, values: Mapping[str, float | None]) -> None:
        pass

    def close(self) -> None:
        pass


def read_metrics(path: Path | epath.Path) -> list[dict]:
    """Returns the lines of a `metrics.jsonl`; a last line that a crash cut short is left out.

    Raises:
        UserError: a damaged line.
    """
    found = []
    for number, line in enumerate(path.read_text().splitlines(keepends=True), start=1):
        if line.endswith("\n"):
            try:
                found.append(json.loads(line))
            except ValueError as error:
                raise UserError(f"{path}, line {number} is damaged ({error}); delete this line") from error
    return found


def first_bad(values: Mapping[str, float]) -> str | None:
    """Returns the name of the first metric that is NaN or infinite."""
    return next((name for name, value in values.items() if not math.isfinite(value)), None)


class Work:
    """What one step computes, counted from its batch on the host."""

    def __init__(self, batch: RowBatch):
        used = batch.visible_until_RT > 0
        microbatches = int((batch.pair_weight_RP.sum((1, 2)) > 0).sum())
        self.tokens = int(used.sum())
        self.slots = microbatches * int(np.prod(batch.tokens_RT.shape[1:]))
        self.pairs = int((batch.pair_weight_RP > 0).sum())
        self.rows = int((batch.pair_weight_RP > 0).any(-1).sum())
        # A row's terms use all of its targets, 0 to the last.
        self.targets = int(np.where(used_terms(batch), batch.term_RE + 1, 0).max(-1).sum())
        self.depth = np.asarray(batch.depth_RT)[used]

    def train_flops(self, config: ModelConfig, lora: Lora) -> float:
        """Model FLOPs of forward and backward pass, without recomputation or padding."""
        return model_flops(config, seen(config, self.depth, self.targets), lora)

    def throughput(self, seconds: float, config: ModelConfig, lora: Lora) -> dict[str, float | None]:
        """Returns pairs, rows and tokens a second, padding, and MFU (null where the device's peak is unknown)."""
        return {
            "pairs_per_second": self.pairs / seconds,
            "rows_per_second": self.rows / seconds,
            "tokens_per_second": self.tokens / seconds,
            "padding_fraction": 1 - self.tokens / self.slots,
            "mfu": mfu(self.train_flops(config, lora) / seconds),
        }


def mfu(flops_per_second: float) -> float | None:
    """Model FLOP/s over the bf16 peak of all devices, or None on a device without a known peak."""
    chip = chip_of(jax.devices()[0].device_kind)
    return flops_per_second / (chip.flops * jax.device_count()) if chip else None
