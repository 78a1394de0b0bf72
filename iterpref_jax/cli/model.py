"""The model that `sample` and `serve` run: a folder, or a checkpoint of a run."""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iterpref_jax import settings
from iterpref_jax.cli.stored import add_step, stored_run
from iterpref_jax.data.text_rules import TextSettings, load_tokenizer, make_rules, preset, rules_from_json
from iterpref_jax.decode.request import SamplerSettings
from iterpref_jax.decode.sampler import Sampler
from iterpref_jax.errors import UserError
from iterpref_jax.models import generation_files, hf_checkpoint
from iterpref_jax.models.adapters import merged_arrays
from iterpref_jax.models.checkpoint_folder import resolve
from iterpref_jax.models.decoder import Decoder
from iterpref_jax.models.lora import NO_LORA
from iterpref_jax.models.transformer import Params
from iterpref_jax.parallel.mesh import make_mesh
from iterpref_jax.parallel.rules import Placement
from iterpref_jax.train.restore import restore_params, tokenizer_folder


@dataclasses.dataclass(frozen=True)
class OpenedModel:
    """A model with its parameters: where it comes from, in words; and the folder of its tokenizer.

    `template_kwargs` are those that a run was trained with; a folder's template has its own defaults.
    """

    name: str
    origin: str
    decoder: Decoder
    params: Params
    tokenizer_folder: str
    template_kwargs: Mapping[str, Any]

    @functools.cached_property
    def tokenizer(self) -> Any:
        tokenizer = load_tokenizer(self.tokenizer_folder)
        if self.template_kwargs:
            tokenizer.chat_template = preset(tokenizer.get_chat_template(), self.template_kwargs)
        return tokenizer

    def sampler(self, shapes: SamplerSettings) -> Sampler:
        return Sampler(self.decoder, self.params, self.tokenizer, shapes, self._end_tokens())

    def _end_tokens(self) -> tuple[int, ...]:
        """Every token that ends an answer: the tokenizer's, the template's end of turn, those of the model's files."""
        text = TextSettings(
            tokenizer=self.tokenizer_folder,
            template="chat" if self.tokenizer.chat_template else "raw",
            system="",
            fence="none",
            eos="append",
            raw_separator="",
            template_kwargs={},
        )
        found = [self.tokenizer.eos_token_id, *make_rules(text, self.tokenizer).eos_ids[-1:]]
        found += generation_files.read(self.tokenizer_folder)
        return tuple(dict.fromkeys(token for token in found if token is not None))


def add_model(arguments: argparse.ArgumentParser) -> None:
    arguments.add_argument("--model", default="", metavar="DIR", help="the model's folder (default: config.model.path)")
    arguments.add_argument("--workdir", default="", metavar="DIR", help="take a checkpoint of this run instead")
    add_step(arguments, "the run's checkpoint")


def load_config(chosen: argparse.Namespace, overrides: list[str]) -> Any:
    """Returns the config with --model in it; see `settings.load_config` for the errors."""
    if bool(chosen.model) and bool(chosen.workdir):
        raise UserError("--model is a folder, --workdir a run: give one of them")
    if chosen.step is not None and not chosen.workdir:
        raise UserError("--step is a checkpoint of a run: give --workdir as well")
    return settings.load_config(chosen.config, overrides + ([f"model.path={chosen.model}"] if chosen.model else []))


def open_model(chosen: argparse.Namespace, config: Any) -> OpenedModel:
    """Reads the weights of the chosen model into the shards of today's devices."""
    return _of_run(chosen.workdir, chosen.step) if chosen.workdir else _of_folder(config)


def _of_folder(config: Any) -> OpenedModel:
    model, mesh = settings.read_model(config)
    if not model.path:
        raise UserError("there is no model: give --model=DIR, --config.model.path=DIR, or --workdir=RUN")
    folder, placement = resolve(model.path), Placement(make_mesh(mesh))
    shape, params = hf_checkpoint.load(folder, model.param_dtype, placement)
    decoder = Decoder(shape, model.compute, placement)
    return OpenedModel(Path(model.path).name, model.path, decoder, params, folder, {})


def _of_run(workdir: str, step: int | str | None) -> OpenedModel:
    run = stored_run(workdir)
    step, params = restore_params(run, step)
    decoder = dataclasses.replace(run.decoder, lora=NO_LORA)
    if run.decoder.lora.rank:
        params = merged_arrays(decoder.config, run.decoder.lora, params, run.settings.model.param_dtype)
    kwargs = rules_from_json(run.dataset.metadata["text"]).template_kwargs
    origin = f"step {step} of {workdir}"
    return OpenedModel(Path(workdir).name, origin, decoder, params, tokenizer_folder(run), kwargs)
