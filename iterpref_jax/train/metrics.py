"""Where numbers go: `metrics.jsonl` (one JSON object a line), TensorBoard, and throughput derived from a batch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
import tensorboardX

from iterpref_jax.data.batch import RowBatch
from iterpref_jax.models.config import ModelConfig
from iterpref_jax.train.atomic import replace_text

# Dense bf16 peak FLOP/s a device, from the vendors' data sheets. Elsewhere (CPU) `mfu` is null.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}


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
        self._board = tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=resume_step + 1)

    def has(self, step: int, split: str) -> bool:
        """Whether the file holds this line, from before a resume."""
        return (step, split) in self._written

    def write(self, step: int, split: str, values: Mapping[str, float | None]) -> None:
        """Writes the values of `split` (train or eval) after update number `step`."""
        self._file.write(json.dumps({"step": step, "split": split, **values}, allow_nan=False) + "\n")
        self._file.flush()
        prefix = "" if split == "train" else f"{split}/"
        for name, value in values.items():
            if value is not None:
                self._board.add_scalar(prefix + name, value, step)

    def close(self) -> None:
        self._file.close()
        self._board.close()


def read_metrics(path: Path) -> list[dict]:
    """Returns the lines of a `metrics.jsonl`; a last line that a crash cut short is left out."""
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


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
        # A target has a weight in one of the two sums; a causal query sees depth + 1 keys.
        self.targets = int(((batch.weight_RG != 0) | (batch.nll_weight_RG != 0)).sum())
        self.keys_seen = (np.asarray(batch.depth_RT, np.int64) + 1)[used]

    def train_flops(self, config: ModelConfig) -> float:
        """Model FLOPs of forward and backward (3 x forward), without recomputation or padding.

        An adapted model counts like one that is trained whole: adapters save memory, and a part of the backward pass.
        """
        heads, head_dim, kv = config.num_attention_heads, config.head_dim, config.num_key_value_heads
        kernels = 2 if config.mlp == "plain" else 3
        mlp = kernels * config.intermediate_size * (config.num_experts_per_tok if config.mlp == "experts" else 1)
        projections = config.hidden_size * (head_dim * (2 * heads + 2 * kv) + mlp + config.num_experts)
        windows = [kind.window or np.iinfo(np.int64).max for kind in config.layer_kinds]
        keys_seen = sum(int(np.minimum(self.keys_seen, window).sum()) for window in windows)
        layers = 2 * projections * self.tokens * config.num_hidden_layers + 4 * heads * head_dim * keys_seen
        return 3.0 * (layers + 2 * config.hidden_size * config.vocab_size * self.targets)

    def throughput(self, seconds: float, config: ModelConfig) -> dict[str, float | None]:
        """Returns pairs and tokens a second, padding, and MFU (null where the device's peak is unknown)."""
        return {
            "pairs_per_second": self.pairs / seconds,
            "tokens_per_second": self.tokens / seconds,
            "padding_fraction": 1 - self.tokens / self.slots,
            "mfu": mfu(self.train_flops(config) / seconds),
        }


def mfu(flops_per_second: float) -> float | None:
    """Model FLOP/s over the bf16 peak of all devices, or None on a device without a known peak."""
    kind = jax.devices()[0].device_kind
    peaks = [peak for name, peak in sorted(PEAK_FLOPS.items()) if kind.startswith(name)]
    return flops_per_second / (peaks[-1] * jax.device_count()) if peaks else None
