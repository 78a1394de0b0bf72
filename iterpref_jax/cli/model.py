"""The model that `sample` and `serve` run: a folder, or a checkpoint of a run."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from iterpref_jax import settings
from iterpref_jax.cli.stored import add_step, of_run, stored_run
from iterpref_jax.data.text_rules import TextRules, TextSettings, load_tokenizer, make_rules, preset, rules_from_json
from iterpref_jax.decode.request import SamplerSettings
from iterpref_jax.decode.sampler import Sampler, check_shapes
from iterpref_jax.errors import UserError
from iterpref_jax.models import generation_files, hf_checkpoint
from iterpref_jax.models.adapters import merged_arrays
from iterpref_jax.models.checkpoint_folder import gguf_file, resolve
from iterpref_jax.models.decoder import Decoder
from iterpref_jax.models.lora import NO_LORA
from iterpref_jax.models.transformer import Params
from iterpref_jax.parallel.mesh import make_mesh
from iterpref_jax.parallel.rules import Placement
from iterpref_jax.progress import warn
from iterpref_jax.train.restore import find_step, restore_params, tokenizer_folder
from iterpref_jax.train.token_ids import MODEL_TOKENIZER


@dataclasses.dataclass(frozen=True)
class OpenedModel:
    """A model whose weights are not read yet: where it comes from, in words; and the folder of its tokenizer.

    `ends` are token ids that end an answer beside the tokenizer's own. `rules` are those that a run's records were made
    by; a folder has none of its own.
    """

    name: str
    origin: str
    decoder: Decoder
    load: Callable[[], Params]
    tokenizer_folder: str
    ends: tuple[int, ...]
    rules: TextRules | None = None

    @functools.cached_property
    def tokenizer(self) -> Any:
        tokenizer = load_tokenizer(self.tokenizer_folder)
        if self.rules and self.rules.template_kwargs:
            tokenizer.chat_template = preset(tokenizer.get_chat_template(), self.rules.template_kwargs)
        return tokenizer

    def sampler(self, shapes: SamplerSettings) -> Sampler:
        """Reads the weights; see `check_shapes`, `hf_checkpoint.load` and `restore_params` for the errors."""
        ends = self._end_tokens()
        check_shapes(self.decoder, shapes, ends)
        return Sampler(self.decoder, self.load(), self.tokenizer, shapes, ends, donate=True)

    def warn_of_prompts(self, *, chat: bool, remedy: str) -> None:
        """Says so if a model of a run is asked in another form than it was trained in, which says little of it."""
        if self.rules and chat != (self.rules.template == "chat"):
            asked = "chat messages" if chat else "plain text"
            trained = f"build.text.template = {self.rules.template}"
            warn(f"warning: {self.origin} was trained with {trained}, and is asked with {asked}: {remedy}")
        if self.rules and self.rules.system and chat:
            system = textwrap.shorten(self.rules.system, 60)
            warn(f"warning: {self.origin} was trained with build.text.system = {system!r}, which is not sent")

    def warn_of_separator(self, prompts: Sequence[str]) -> None:
        """Says so if plain prompts do not end with what stood between a prompt and its program in training."""
        if not self.rules or self.rules.template != "raw":
            return
        separator = self.rules.raw_separator
        others = sum(not prompt.endswith(separator) for prompt in prompts)
        if others:
            warn(
                f"warning: {self.origin} was trained on programs behind build.text.raw_separator = {separator!r}, and "
                f"{others} of {len(prompts)} prompts do not end with it"
            )

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
        found = [self.tokenizer.eos_token_id, *make_rules(text, self.tokenizer).eos_ids[-1:], *self.ends]
        return tuple(dict.fromkeys(token for token in found if token is not None))


def add_model(arguments: argparse.ArgumentParser) -> None:
    arguments.add_argument("--model", default="", metavar="DIR", help="the model's folder (default: config.model.path)")
    arguments.add_argument("--workdir", default="", metavar="DIR", help="take a checkpoint of this run instead")
    add_step(arguments, "the run's checkpoint")


def load_config(chosen: argparse.Namespace, overrides: list[str]) -> Any:
    """Returns the config with --model in it, instead of its own model; see `settings.load_config` for the errors."""
    if bool(chosen.model) and bool(chosen.workdir):
        raise UserError("--model is a folder, --workdir a run: give one of them")
    if chosen.step is not None and not chosen.workdir:
        raise UserError("--step is a checkpoint of a run: give --workdir as well")
    if chosen.workdir:
        of_run(overrides)
    shaped = next((word for word in overrides if word.startswith("model.init")), None)
    if chosen.model and shaped:
        raise UserError(f"--config.{shaped} has no effect with --model, a folder that has its shape; leave one out")
    config: Any = settings.load_config(
        chosen.config, overrides + ([f"model.path={chosen.model}"] if chosen.model else [])
    )
    if chosen.model:
        # A config that shapes a model of its own, such as FILE:tiny, is read for all else.
        with config.unlocked():
            config.model.init = {}
    return config


def open_model(chosen: argparse.Namespace, config: Any, overrides: Sequence[str]) -> OpenedModel:
    """Opens the chosen model for today's devices; no weight is read before there is a sampler.

    Of a run, `overrides` alone can change how it is computed: `config` is not the run's.
    """
    return _of_run(chosen.workdir, chosen.step, of_run(overrides)) if chosen.workdir else _of_folder(config)


def _of_folder(config: Any) -> OpenedModel:
    model, mesh = settings.read_model(config)
    if not model.path:
        raise UserError("there is no model: give --model=DIR, --config.model.path=DIR, or --workdir=RUN")
    folder, placement = resolve(model.path), Placement(make_mesh(mesh))
    decoder = Decoder(hf_checkpoint.model_config(folder), model.compute, placement)

    def load() -> Params:
        # Parameters that training would round to bfloat16 are rounded here too.
        narrow = model.compute.compute_dtype if model.param_dtype == "float32" else ""
        return hf_checkpoint.load(folder, model.param_dtype, placement, narrow)[1]

    gguf = gguf_file(folder)
    has_tokenizer = gguf is None or (Path(folder) / MODEL_TOKENIZER).exists()
    ends = generation_files.ids(hf_checkpoint.config_content(folder)) if gguf else generation_files.read(folder)
    tokenizer = folder if has_tokenizer else str(gguf)
    return OpenedModel(Path(model.path).name, model.path, decoder, load, tokenizer, tuple(ends))


def _of_run(workdir: str, step: int | str | None, overrides: Sequence[str]) -> OpenedModel:
    run = stored_run(workdir, overrides)
    number, decoder = find_step(run, step), dataclasses.replace(run.decoder, lora=NO_LORA)

    def load() -> Params:
        params = restore_params(run, number)[1]
        if not run.decoder.lora.rank:
            return params
        return merged_arrays(decoder.config, run.decoder.lora, params, run.settings.model.param_dtype)

    origin, rules = f"step {number} of {workdir}", rules_from_json(run.dataset.metadata["text"])
    # Those that the run's export ends an answer with.
    ends = *rules.eos_ids[-1:], *(generation_files.read(run.model_folder) if run.model_folder else ())
    return OpenedModel(Path(workdir).name, origin, decoder, load, tokenizer_folder(run), ends, rules)
