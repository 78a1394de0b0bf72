"""TRL's DPO over pairs of token ids: the competitor's half of step_vs_trl.py, which starts it.

Needs torch and TRL, and nothing of ours.

Everything is TRL's own but its tokenisation: it trains on the ids that our side trains on, in the same order.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import measured

# Else `kernels`, the package that transformers looks for, would be kernels.py beside this file, which needs JAX.
sys.path.remove(str(Path(__file__).parent))

import datasets
import torch
import transformers
import trl


class TokenIds(trl.DPOTrainer):
    """A `DPOTrainer` of a dataset that holds `prompt_ids`, `chosen_ids` and `rejected_ids`; it times its reference."""

    reference_s = 0.0

    def _prepare_dataset(self, dataset, *_):
        return dataset

    def _precompute_ref_logps(self, dataset, name, batch_size):
        # Ours is timed once its program is compiled; kernels of torch are loaded and tuned in the first batch.
        super()._precompute_ref_logps(dataset.select(range(batch_size)), name, batch_size)
        began = time.perf_counter()
        dataset = super()._precompute_ref_logps(dataset, name, batch_size)
        self.reference_s += time.perf_counter() - began
        return dataset


class Clock(transformers.TrainerCallback):
    """Notes when training began and when each optimizer step had ended."""

    def __init__(self):
        self.times: list[float] = []

    def _note(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())

    def on_train_begin(self, *_, **__):
        self._note()

    def on_step_end(self, *_, **__):
        self._note()


def trainer_of(spec: dict[str, Any], folder: Path, clock: Clock) -> TokenIds:
    """Returns the trainer; where the reference is precomputed, TRL does that in here."""
    args = trl.DPOConfig(
        output_dir=str(folder / "trl"),
        beta=spec["beta"],
        precompute_ref_log_probs=spec["precompute"],
        precompute_ref_batch_size=spec["reference_batch"],
        per_device_train_batch_size=spec["batch"],
        gradient_accumulation_steps=spec["pairs_per_step"] // spec["batch"],
        num_train_epochs=1,
        train_sampling_strategy="sequential",
        max_length=None,
        learning_rate=spec["learning_rate"],
        lr_scheduler_type="constant",
        bf16=spec["compute_dtype"] == "bfloat16",
        use_cpu=spec["device"] == "cpu",
        gradient_checkpointing=spec["checkpointing"],
        use_liger_kernel=spec["liger"],
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    numbers = dict(dtype=getattr(torch, spec["param_dtype"]), attn_implementation=spec["attention"])
    return TokenIds(
        model=transformers.AutoModelForCausalLM.from_pretrained(spec["model"], **numbers),
        args=args,
        train_dataset=datasets.Dataset.from_json(spec["pairs"], cache_dir=str(folder / "cache")),
        # For its padding token alone.
        processing_class=transformers.AutoTokenizer.from_pretrained(spec["tokenizer"]),
        callbacks=[clock],
    )


def padded_tokens(pairs: datasets.Dataset, batch: int) -> list[int]:
    """Returns the tokens of every microbatch with its padding: both sides of `batch` pairs, as long as the longest."""
    longest = [len(p["prompt_ids"]) + max(len(p["chosen_ids"]), len(p["rejected_ids"])) for p in pairs]
    return [2 * batch * max(longest[start : start + batch]) for start in range(0, len(longest), batch)]


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """Returns the times, losses, tokens and peak memory of one run."""
    torch.set_num_threads(measured.cores())
    if spec["labelled"]:
        # What it asks before it leaves unlabelled positions out; its kernels ask for themselves.
        assert callable(trl.trainer.utils._use_triton), "this TRL chooses in another way"
        trl.trainer.utils._use_triton = lambda device: True
    clock = Clock()
    trainer = trainer_of(spec, Path(spec["workdir"]), clock)
    trainer.train()
    logs = [line for line in trainer.state.log_history if "loss" in line]
    seen = [int(line["num_tokens"]) for line in logs]
    micro = padded_tokens(trainer.train_dataset, spec["batch"])
    every = spec["pairs_per_step"] // spec["batch"]
    on_gpu = spec["device"] == "gpu"
    return {
        "reference_s_per_pair": trainer.reference_s / len(trainer.train_dataset),
        "step_s": [end - start for start, end in zip(clock.times, clock.times[1:], strict=False)],
        "losses": [line["loss"] for line in logs],
        "tokens": [now - before for before, now in zip([0, *seen], seen, strict=False)],
        "columns": [sum(micro[start : start + every]) for start in range(0, len(micro), every)],
        "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else measured.peak_host_bytes(),
        "parameters": trainer.model.num_parameters(),
        "device_kind": torch.cuda.get_device_name() if on_gpu else "cpu",
        "versions": {module.__name__: module.__version__ for module in (torch, transformers, trl)},
    }


if __name__ == "__main__":
    measured.answer(measure)
