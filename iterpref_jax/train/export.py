"""A run's checkpoint -> a Hugging Face folder."""

from __future__ import annotations

import contextlib
from typing import Any

from etils import epath

from iterpref_jax.data.text_rules import load_tokenizer
from iterpref_jax.errors import UserError
from iterpref_jax.models import hf_checkpoint
from iterpref_jax.models.config import inert_fields
from iterpref_jax.models.transformer import abstract_params, param_shardings
from iterpref_jax.train.checkpoint import Checkpoints
from iterpref_jax.train.run import MODEL_TOKENIZER, Run


def export(run: Run, out: str, *, step: int | None, dtype: str, max_shard_gb: float) -> int:
    """Writes config.json, safetensors and tokenizer of one checkpoint (default: the newest) to `out`; returns its step.

    Raises:
        UserError: no checkpoint, or not that step (those that exist are named).
    """
    folder = str(run.workdir / "checkpoints")
    # Not writing: a training run may be saving in this folder right now.
    with contextlib.closing(
        Checkpoints(folder, keep=run.settings.train.keep_checkpoints, writing=False)
    ) as checkpoints:
        return _export(run, checkpoints, out, step=step, dtype=dtype, max_shard_gb=max_shard_gb)


def _export(run: Run, checkpoints: Checkpoints, out: str, *, step: int | None, dtype: str, max_shard_gb: float) -> int:
    if run.settings.model.path and epath.Path(out).resolve() == epath.Path(run.settings.model.path).resolve():
        raise UserError(f"{out} is the model that training started from: export to another folder")
    steps = checkpoints.steps()
    if not steps:
        raise UserError(f"{checkpoints.folder} holds no checkpoint yet")
    step = steps[-1] if step is None else step
    if step not in steps:
        raise UserError(f"{checkpoints.folder} has no checkpoint of step {step}; it has {steps}")
    config, stored = run.decoder.config, run.settings.model.param_dtype
    params = checkpoints.restore_params(
        step, abstract_params(config, stored), param_shardings(config, stored, run.placement)
    )
    hf_checkpoint.save(
        out,
        config,
        params,
        dtype=dtype or stored,
        copy_from=_tokenizer_folder(run),
        max_shard_gb=max_shard_gb,
        inert=_inert_fields(run),
    )
    return step


def _tokenizer_folder(run: Run) -> str:
    """The model's own folder, or the dataset's where the model came without a tokenizer."""
    own = run.settings.model.path
    return own if own and (epath.Path(own) / MODEL_TOKENIZER).exists() else str(run.dataset.tokenizer_path)


def _inert_fields(run: Run) -> dict[str, Any]:
    """What generation needs to know: from the model's own config.json, or for a model from scratch from its data."""
    if run.settings.model.path:
        return inert_fields(run.settings.model.path)
    tokenizer = load_tokenizer(str(run.dataset.tokenizer_path))
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return ids | {"max_position_embeddings": run.settings.rows.tokens}
