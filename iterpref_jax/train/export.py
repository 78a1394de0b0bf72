"""A run's checkpoint -> a Hugging Face folder, or a PEFT folder of its adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from etils import epath

from iterpref_jax.data.text_rules import load_tokenizer, preset, rules_from_json
from iterpref_jax.errors import UserError
from iterpref_jax.models import hf_checkpoint
from iterpref_jax.models.adapters import ADAPTER_FILES, merged, save_peft, trained_names
from iterpref_jax.models.checkpoint_folder import TOKENIZER_FILES
from iterpref_jax.models.generation_files import Generation
from iterpref_jax.models.hf_config import inert_fields
from iterpref_jax.models.weights import weights
from iterpref_jax.train.restore import restore_params, restore_trained, tokenizer_folder
from iterpref_jax.train.run import Run


def export(run: Run, out: str, *, step: int | str | None, dtype: str, max_shard_gb: float) -> int:
    """Writes config.json, safetensors and tokenizer of one checkpoint (default: the newest) to `out`; returns its step.

    Adapters are merged. Tensors that were not trained are copied byte by byte from the model that training began with,
    unless all are to be of one `dtype`. What ended the answers that were trained on ends those of the exported model.

    Raises:
        UserError: no checkpoint, or not that step (those that exist are named).
    """
    _check_out(run, out)
    step, params = restore_params(run, step)
    # Of an export before, whose template, ends or adapters would go before this one's.
    for name in (*TOKENIZER_FILES, *ADAPTER_FILES):
        (Path(out) / name).unlink(missing_ok=True)
    config, lora, untouched = run.decoder.config, run.decoder.lora, set()
    if lora.rank:
        params = merged(config, lora, params)
        if run.model_folder and not dtype:
            everything = {name for weight in weights(config) for name in weight.names(config)}
            untouched = everything - trained_names(config, lora)
    hf_checkpoint.save(
        out,
        config,
        params,
        dtype=dtype or run.settings.model.param_dtype,
        copy_from=tokenizer_folder(run),
        max_shard_gb=max_shard_gb,
        inert=_inert_fields(run),
        generation=_generation(run),
        untouched=untouched,
        source=run.model_folder if untouched else None,
    )
    return step


def export_adapters(run: Run, out: str, *, step: int | str | None) -> int:
    """Writes the adapters of one checkpoint as a folder that `peft` loads; returns its step.

    Raises:
        UserError: the run trained no adapters, or see `export`.
    """
    _check_out(run, out)
    if not run.decoder.lora.rank:
        raise UserError(f"{run.workdir} trained every parameter (model.lora.rank = 0): export it without --adapters")
    if not run.model_folder:
        raise UserError(
            f"{run.workdir} began with random weights: PEFT needs a model folder; export without --adapters"
        )
    if (Path(out) / "config.json").exists():
        raise UserError(
            f"{out} holds a whole model, which adapters beside it would take the place of: name another --out"
        )
    step, adapters = restore_trained(run, step)
    save_peft(out, run.decoder.config, run.decoder.lora, adapters, run.settings.model.path)
    return step


def _check_out(run: Run, out: str) -> None:
    if run.model_folder and epath.Path(out).resolve() == epath.Path(run.model_folder).resolve():
        raise UserError(f"{out} is the model that training started from: export to another folder")


def _generation(run: Run) -> Generation:
    """What answers of the training data ended with, and how they were asked for."""
    rules = rules_from_json(run.dataset.metadata["text"])
    template = preset(rules.chat_template, rules.template_kwargs) if rules.template_kwargs else ""
    return Generation(ends=rules.eos_ids[-1:], config_from=run.model_folder or None, chat_template=template)


def _inert_fields(run: Run) -> dict[str, Any]:
    """What generation needs to know: from the model's own config.json, or for a model from scratch from its data."""
    if run.model_folder:
        return inert_fields(hf_checkpoint.config_content(run.model_folder))
    tokenizer = load_tokenizer(run.dataset.tokenizer_path)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return ids | {"max_position_embeddings": run.settings.rows.tokens}
