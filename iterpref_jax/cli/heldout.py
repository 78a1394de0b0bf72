"""`iterpref heldout`: how well a checkpoint or a model folder ranks held-out repairs above bugs, and where from.

With --workdir the reference is what the run started from; with --model it is the config's model.path. On several hosts
the same command runs on each of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from iterpref_jax import settings
from iterpref_jax.cli import hosts, options
from iterpref_jax.cli.stored import add_step, check_places, on_devices_of_today, stored_config
from iterpref_jax.errors import GO_ON, UserError
from iterpref_jax.evaluate import held_out, held_out_report
from iterpref_jax.models import hf_checkpoint
from iterpref_jax.models.checkpoint_folder import resolve
from iterpref_jax.models.decoder import Decoder
from iterpref_jax.models.transformer import Params
from iterpref_jax.parallel import distributed
from iterpref_jax.progress import say
from iterpref_jax.train import alike, compile_cache
from iterpref_jax.train.restore import restore_params
from iterpref_jax.train.run import Run, RunSettings
from iterpref_jax.train.signals import stop_requested
from iterpref_jax.train.whole_pairs import SPLIT, open_whole, policy_logps, reference_logps


def main(argv: Sequence[str]) -> int:
    chosen, overrides = options.parse(_arguments(), argv)
    config = _config(chosen, overrides)
    with hosts.joined("heldout", argv, chosen, config):
        compile_cache.enable(settings.read_section(config, "compile"))
        run = open_whole(_settings(chosen, config, overrides), chosen.workdir or chosen.out, _reference(chosen))
        alike.check_inputs(run)
        origin, decoder, params = _policy(run, chosen)
        with stop_requested("ending after this part") as should_stop:
            policy = policy_logps(run, decoder, params, should_stop)
            del params
            reference = None if policy is None else reference_logps(run, should_stop)
        if policy is None or reference is None:
            say("stopped; the same command goes on with the reference log-probs that are there")
            return GO_ON
        if distributed.is_main():
            about = {"policy": origin, "reference": _start(run), "data": run.settings.data.path}
            content = _write(run, policy, reference, chosen.out, about | {"fingerprint": run.fingerprint})
            say(_line(content))
            say(f"held-out evaluation: {chosen.out}/{held_out_report.TABLE_FILE}")
    return 0


def _arguments() -> argparse.ArgumentParser:
    arguments = options.parser("heldout", __doc__)
    arguments.add_argument("--workdir", default="", metavar="DIR", help="evaluate a checkpoint of this run")
    add_step(arguments, "the run's checkpoint")
    arguments.add_argument("--model", default="", metavar="DIR", help="evaluate this model folder instead")
    arguments.add_argument(
        "--config", default="", metavar="FILE[:ARG]", help="with --model: data, rows, devices and the reference"
    )
    arguments.add_argument("--out", required=True, metavar="DIR", help="the folder of the results to write")
    arguments.add_argument(
        "--reference", default="", metavar="DIR", help="where reference log-probs are kept (default: OUT/reference)"
    )
    hosts.add_flags(arguments)
    return arguments


def _config(chosen: argparse.Namespace, overrides: list[str]) -> Any:
    if bool(chosen.workdir) == bool(chosen.model):
        raise UserError("give --workdir=RUN (a checkpoint) or --model=DIR with --config=FILE (a folder), one of them")
    if chosen.workdir:
        if chosen.config:
            raise UserError("--config has no effect with --workdir: a run has its own; override single fields")
        return settings.override(stored_config(chosen.workdir), overrides)
    if not chosen.config:
        raise UserError("--model needs --config=FILE, which says data.path and the reference (model.path)")
    if chosen.step is not None:
        raise UserError("--step is a checkpoint of a run: give --workdir instead of --model")
    return settings.load_config(chosen.config, overrides)


def _settings(chosen: argparse.Namespace, config: Any, overrides: list[str]) -> RunSettings:
    read = settings.read_run(config)
    if not chosen.workdir:
        return read
    check_places(read, chosen.workdir)
    return on_devices_of_today(read, overrides)


def _reference(chosen: argparse.Namespace) -> str:
    return chosen.reference or f"{chosen.out}/reference"


def _policy(run: Run, chosen: argparse.Namespace) -> tuple[str, Decoder, Params]:
    """Returns what is evaluated, in words, and how to compute it."""
    if chosen.workdir:
        step, params = restore_params(run, chosen.step)
        return f"step {step} of {chosen.workdir}", run.decoder, params
    config, params = hf_checkpoint.load(resolve(chosen.model), run.settings.model.param_dtype, run.placement)
    if config.vocab_size != run.decoder.config.vocab_size:
        raise UserError(
            f"--model={chosen.model} has {config.vocab_size} tokens, the reference {run.settings.model.path or 'init'} "
            f"{run.decoder.config.vocab_size}: they must share a tokenizer"
        )
    return chosen.model, Decoder(config, run.settings.model.compute, run.placement), params


def _start(run: Run) -> str:
    return run.settings.model.path or f"random weights of seed {run.settings.seed}"


def _write(run: Run, policy: Any, reference: Any, out: str, about: dict[str, Any]) -> dict[str, Any]:
    split = run.dataset.split(SPLIT)
    examples = [split[record] for record in range(len(split))]
    beta = run.settings.objective.link.beta
    return held_out_report.write(out, held_out.scored(examples, split.index, policy, reference, beta=beta), about)


def _line(content: dict[str, Any]) -> str:
    overall = content["overall"]
    shown = (f"{name} {overall['metrics'][name]['value']:.4f}" for name in held_out_report.SHOWN)
    return f"{overall['pairs']} pairs of {overall['tasks']} tasks: {', '.join(shown)}"
